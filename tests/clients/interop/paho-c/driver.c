/* Eclipse paho for C; the command line is that of every driver, see test_interop.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <MQTTClient.h>

#define SECONDS 60 /* on a busy machine */

static MQTTClient client;

static void check(int code, const char *what) {
    if (code != 0) {
        fprintf(stderr, "%s: %d\n", what, code);
        exit(1);
    }
}

static void subscribe(const char *topic, int qos, int v5) {
    if (v5) {
        MQTTResponse response = MQTTClient_subscribe5(client, topic, qos, NULL, NULL);
        check(response.reasonCode > 2, "subscribe");
        MQTTResponse_free(response);
    } else {
        check(MQTTClient_subscribe(client, topic, qos), "subscribe");
    }
}

static void publish(const char *topic, const char *payload, int qos, int retain, int v5) {
    MQTTClient_deliveryToken token = 0;
    int length = (int)strlen(payload);
    if (v5) {
        MQTTResponse response = MQTTClient_publish5(client, topic, length, payload, qos, retain, NULL, &token);
        check(response.reasonCode, "publish");
        MQTTResponse_free(response);
    } else {
        check(MQTTClient_publish(client, topic, length, payload, qos, retain, &token), "publish");
    }
    if (qos > 0) check(MQTTClient_waitForCompletion(client, token, SECONDS * 1000L), "waiting for the acknowledgement");
}

static void show(void) {
    char *topic = NULL;
    int length = 0;
    MQTTClient_message *message = NULL;
    int code = MQTTClient_receive(client, &topic, &length, &message, SECONDS * 1000UL);
    if (message == NULL) check(code ? code : 1, "receive");
    printf("message %d %d %.*s\n", message->qos, message->retained, message->payloadlen, (char *)message->payload);
    fflush(stdout);
    MQTTClient_freeMessage(&message);
    MQTTClient_free(topic);
}

int main(int count, char **given) {
    if (count != 8) return 2;
    const char *scenario = given[1], *url = given[4], *ca = given[5], *topic = given[7];
    int v5 = strcmp(given[2], "5") == 0, qos = atoi(given[3]), resume = strcmp(scenario, "resume") == 0, present;

    /* Its names of the transports: tcp, ssl, ws, wss. */
    char address[512];
    if (strncmp(url, "tls://", 6) == 0) snprintf(address, sizeof address, "ssl://%s", url + 6);
    else snprintf(address, sizeof address, "%s", url);

    MQTTClient_createOptions create = MQTTClient_createOptions_initializer;
    create.MQTTVersion = v5 ? MQTTVERSION_5 : MQTTVERSION_3_1_1;
    check(MQTTClient_createWithOptions(&client, address, given[6], MQTTCLIENT_PERSISTENCE_NONE, NULL, &create), "create");

    MQTTClient_connectOptions plain = MQTTClient_connectOptions_initializer;
    MQTTClient_connectOptions five = MQTTClient_connectOptions_initializer5;
    MQTTClient_connectOptions options = v5 ? five : plain;
    if (v5) options.cleanstart = !resume;
    else options.cleansession = !resume;
    options.MQTTVersion = create.MQTTVersion;
    options.connectTimeout = SECONDS;
    MQTTClient_SSLOptions ssl = MQTTClient_SSLOptions_initializer;
    ssl.trustStore = ca;
    if (*ca) options.ssl = &ssl;
    MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
    will.topicName = topic;
    will.message = "gone";
    will.qos = qos;
    if (strcmp(scenario, "will") == 0) options.will = &will;

    if (v5) {
        MQTTProperties properties = MQTTProperties_initializer;
        MQTTProperty expiry;
        expiry.identifier = MQTTPROPERTY_CODE_SESSION_EXPIRY_INTERVAL;
        expiry.value.integer4 = resume ? 3600 : 0;
        MQTTProperties_add(&properties, &expiry);
        MQTTResponse response = MQTTClient_connect5(client, &options, &properties, NULL);
        check(response.reasonCode, "connect");
        /* In 5 this client does not tell whether there is a session, so the test does, on standard input. */
        char line[16] = "";
        present = resume && fgets(line, sizeof line, stdin) != NULL && strncmp(line, "again", 5) == 0;
        MQTTResponse_free(response);
        MQTTProperties_free(&properties);
    } else {
        check(MQTTClient_connect(client, &options), "connect");
        present = options.returned.sessionPresent;
    }

    if (strcmp(scenario, "will") == 0) {
        puts("ready");
        fflush(stdout);
        for (;;) pause();
    } else if (resume && !present) {
        subscribe(topic, qos, v5);
        puts("ready");
    } else if (resume) {
        puts("present");
        show();
    } else if (strcmp(scenario, "retained") == 0) {
        publish(topic, "kept", qos, 1, v5);
        subscribe(topic, qos, v5);
        show();
    } else {
        subscribe(topic, qos, v5);
        publish(topic, "hello", qos, 0, v5);
        show();
    }
    if (v5) MQTTClient_disconnect5(client, 1000, MQTTREASONCODE_SUCCESS, NULL);
    else MQTTClient_disconnect(client, 1000);
    MQTTClient_destroy(&client);
    return 0;
}
