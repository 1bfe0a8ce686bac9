//! `sonde config show`.

use super::output::say;
use super::{ConfigArgs, Result};
use crate::config::Config;

pub(super) fn run(args: &ConfigArgs, effective: bool) -> Result<()> {
    let config = Config::load(args, true)?;
    for setting in &config.effective {
        if effective {
            say(format_args!(
                "{} = \"{}\"  # {} ({})",
                setting.key, setting.value, setting.help, setting.origin
            ))?;
        } else if setting.origin != "default" {
            say(format_args!("{} = \"{}\"", setting.key, setting.value))?;
        }
    }
    Ok(())
}
