-- What the demo's tables, sources and rule are. Times of `plant` are seconds, those of `motion` nanoseconds.

CREATE TABLE plant (
    time TIMESTAMP, device STRING TAG,
    collector DOUBLE, tank_top DOUBLE, tank_mid DOUBLE, tank_low DOUBLE, pressure DOUBLE, flow DOUBLE,
    pump DOUBLE, relay_1 BIGINT, relay_2 BIGINT, seconds_1 BIGINT, seconds_2 BIGINT, errors BIGINT, energy BIGINT
) WITH (partition = '1 day', retention = '2 years', cold_after = '7 days');

CREATE SOURCE plant ON MQTT 'plant/{device}/state' FORMAT JSON (time = 'ts', unit = 's') INTO plant;

-- The five-level scheme {org}/{site}/{device_type}/{device_id}/{measurement}, in one line.
CREATE SOURCE motion ON MQTT '{org}/{site}/{device_type}/{device_id}/{measurement}' FORMAT JSON (time = 'ts', unit = 'ns') INTO motion;

CREATE RULE overheat AS
    SELECT time, device, collector FROM plant WHERE collector > 105 AND collector < 800
    DO PUBLISH TO 'alerts/{device}' QOS 1, INSERT INTO alerts;
