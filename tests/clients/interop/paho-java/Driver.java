// Eclipse paho for Java, both of its clients; the command line is that of every driver, see test_interop.py.

import java.io.FileInputStream;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;
import org.eclipse.paho.client.mqttv3.MqttClient;
import org.eclipse.paho.client.mqttv3.MqttConnectOptions;
import org.eclipse.paho.client.mqttv3.persist.MemoryPersistence;
import org.eclipse.paho.mqttv5.client.MqttConnectionOptions;
import org.eclipse.paho.mqttv5.common.MqttMessage;

public class Driver {
    /** What both clients do. */
    interface Client {
        boolean connect(boolean resume, String will, int qos) throws Exception;

        void subscribe(String topic, int qos) throws Exception;

        void publish(String topic, String payload, int qos, boolean retain) throws Exception;

        void disconnect() throws Exception;
    }

    /** How long it waits for anything, on a busy machine. */
    static final int SECONDS = 60;
    static final BlockingQueue<String> messages = new LinkedBlockingQueue<>();

    static void arrived(int qos, boolean retained, byte[] payload) {
        messages.add("message " + qos + " " + (retained ? 1 : 0) + " " + new String(payload));
    }

    public static void main(String[] given) {
        try {
            run(given);
        } catch (Exception error) {
            // Its threads may go on for ever after a connection that failed.
            error.printStackTrace();
            System.exit(1);
        }
    }

    static void run(String[] given) throws Exception {
        String scenario = given[0], topic = given[6];
        int qos = Integer.parseInt(given[2]);
        boolean resume = scenario.equals("resume");
        String url = given[3].replace("tls://", "ssl://");
        Client client = given[1].equals("5") ? new Five(url, given[4], given[5]) : new Three(url, given[4], given[5]);
        boolean present = client.connect(resume, scenario.equals("will") ? topic : null, qos);
        if (scenario.equals("will")) {
            System.out.println("ready");
            Thread.sleep(Long.MAX_VALUE);
        } else if (resume && !present) {
            client.subscribe(topic, qos);
            System.out.println("ready");
        } else if (resume) {
            System.out.println("present");
            show();
        } else if (scenario.equals("retained")) {
            client.publish(topic, "kept", qos, true);
            client.subscribe(topic, qos);
            show();
        } else {
            client.subscribe(topic, qos);
            client.publish(topic, "hello", qos, false);
            show();
        }
        client.disconnect();
        System.exit(0);
    }

    static void show() throws Exception {
        String line = messages.poll(SECONDS, TimeUnit.SECONDS);
        if (line == null) {
            System.err.println("no message for " + SECONDS + " s");
            System.exit(1);
        }
        System.out.println(line);
    }

    static SSLSocketFactory trust(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null);
        try (FileInputStream file = new FileInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context.getSocketFactory();
    }

    static class Three implements Client {
        final MqttClient client;
        final String ca;

        Three(String url, String ca, String id) throws Exception {
            client = new MqttClient(url, id, new MemoryPersistence());
            this.ca = ca;
        }

        public boolean connect(boolean resume, String will, int qos) throws Exception {
            MqttConnectOptions options = new MqttConnectOptions();
            options.setMqttVersion(MqttConnectOptions.MQTT_VERSION_3_1_1);
            options.setConnectionTimeout(SECONDS);
            options.setCleanSession(!resume);
            if (!ca.isEmpty()) options.setSocketFactory(trust(ca));
            if (will != null) options.setWill(will, "gone".getBytes(), qos, false);
            client.setCallback(new org.eclipse.paho.client.mqttv3.MqttCallback() {
                public void connectionLost(Throwable cause) {}

                public void messageArrived(String topic, org.eclipse.paho.client.mqttv3.MqttMessage m) {
                    arrived(m.getQos(), m.isRetained(), m.getPayload());
                }

                public void deliveryComplete(org.eclipse.paho.client.mqttv3.IMqttDeliveryToken token) {}
            });
            return client.connectWithResult(options).getSessionPresent();
        }

        public void subscribe(String topic, int qos) throws Exception {
            client.subscribe(topic, qos);
        }

        public void publish(String topic, String payload, int qos, boolean retain) throws Exception {
            client.publish(topic, payload.getBytes(), qos, retain);
        }

        public void disconnect() throws Exception {
            client.disconnect();
        }
    }

    static class Five implements Client {
        final org.eclipse.paho.mqttv5.client.MqttClient client;
        final String ca;

        Five(String url, String ca, String id) throws Exception {
            client = new org.eclipse.paho.mqttv5.client.MqttClient(
                    url, id, new org.eclipse.paho.mqttv5.client.persist.MemoryPersistence());
            this.ca = ca;
        }

        public boolean connect(boolean resume, String will, int qos) throws Exception {
            MqttConnectionOptions options = new MqttConnectionOptions();
            options.setConnectionTimeout(SECONDS);
            options.setCleanStart(!resume);
            options.setSessionExpiryInterval(resume ? 3600L : 0L);
            if (!ca.isEmpty()) options.setSocketFactory(trust(ca));
            if (will != null) options.setWill(will, new MqttMessage("gone".getBytes(), qos, false, null));
            client.setCallback(new org.eclipse.paho.mqttv5.client.MqttCallback() {
                public void disconnected(org.eclipse.paho.mqttv5.client.MqttDisconnectResponse response) {}

                public void mqttErrorOccurred(org.eclipse.paho.mqttv5.common.MqttException error) {}

                public void messageArrived(String topic, MqttMessage m) {
                    arrived(m.getQos(), m.isRetained(), m.getPayload());
                }

                public void deliveryComplete(org.eclipse.paho.mqttv5.client.IMqttToken token) {}

                public void connectComplete(boolean again, String url) {}

                public void authPacketArrived(int reason, org.eclipse.paho.mqttv5.common.packet.MqttProperties p) {}
            });
            return client.connectWithResult(options).getSessionPresent();
        }

        public void subscribe(String topic, int qos) throws Exception {
            client.subscribe(topic, qos);
        }

        public void publish(String topic, String payload, int qos, boolean retain) throws Exception {
            client.publish(topic, payload.getBytes(), qos, retain);
        }

        public void disconnect() throws Exception {
            client.disconnect();
        }
    }
}
