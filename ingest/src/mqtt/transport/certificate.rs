//! Whom a verified client certificate names.

use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Any, Decode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::limits::CERTIFICATE_NAMES;
use crate::mqtt::ClientCertificate;

/// `commonName` (X.520, 2.5.4.3).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Reads the names of a certificate that was verified; `None` where it cannot be read.
pub(super) fn read(der: &[u8]) -> Option<ClientCertificate> {
    let certificate = Certificate::from_der(der).ok()?.tbs_certificate;
    let attributes = certificate.subject.0.iter().flat_map(|set| set.0.iter());
    // The last one is the most specific.
    let common_name = attributes
        .filter(|attribute| attribute.oid == COMMON_NAME)
        .filter_map(|a| text(&a.value))
        .next_back();
    let alternatives = certificate.get::<SubjectAltName>().ok()?;
    let names = alternatives.into_iter().flat_map(|(_, names)| names.0).filter_map(|name| match name {
        GeneralName::DnsName(name) | GeneralName::Rfc822Name(name) => Some(name.to_string()),
        GeneralName::UniformResourceIdentifier(name) => Some(name.to_string()),
        _ => None,
    });
    Some(ClientCertificate { common_name, names: names.take(CERTIFICATE_NAMES).collect() })
}

fn text(value: &Any) -> Option<String> {
    let text = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
    let text = text.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string()));
    let text = text.or_else(|_| value.decode_as::<Ia5StringRef<'_>>().map(|text| text.to_string()));
    text.or_else(|_| value.decode_as::<TeletexStringRef<'_>>().map(|text| text.to_string())).ok()
}
