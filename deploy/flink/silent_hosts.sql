-- Silent hosts. The compacted topic fleet.silent_hosts has a message for each host whose agent sent no heartbeat for 70 s. An agent sends
-- a heartbeat every 30 s. A tombstone follows after the agent's next heartbeat. A host is not silent if its agent was stopped on request.
--
-- The job uses the timestamps of the broker (`message.timestamp.type=LogAppendTime`, set by deploy/kafka/topics.sh), so it does not depend on
-- the clocks of hosts. Its time advances with the heartbeats of all hosts, and with ticks that the job itself sends through Kafka each second.
-- So it reports all hosts if all are silent at the same time, and no host while Kafka is down.

CREATE TABLE silent_hosts (
  host STRING,
  last_heartbeat TIMESTAMP_LTZ(3),
  PRIMARY KEY (host) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'fleet.silent_hosts',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'key.format' = 'raw',
  'value.format' = 'json'
);

CREATE TABLE ticks (
  tick BIGINT
) WITH (
  'connector' = 'datagen',
  'rows-per-second' = '1',
  'fields.tick.min' = '0'
);

CREATE TABLE fleet_clock (
  tick BIGINT,
  arrived TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  WATERMARK FOR arrived AS arrived
) WITH (
  'connector' = 'kafka',
  'topic' = 'fleet.clock',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'properties.group.id' = 'qemu-flink-clock',
  'scan.startup.mode' = 'latest-offset',
  'scan.watermark.idle-timeout' = '5 s',
  'format' = 'json'
);

-- A tick has the type of a stop, and no host. So the job never reports the host without a name.
CREATE VIEW agent_records AS
SELECT host, `type`, arrived FROM qemu_events
WHERE `type` IN ('qemu.agent.started', 'qemu.agent.heartbeat', 'qemu.agent.stopping')
UNION ALL
SELECT '' AS host, 'qemu.agent.stopping' AS `type`, arrived FROM fleet_clock;

-- A session window ends after a host has sent nothing for 70 s. The time of its last record is the time of the host's last heartbeat.
CREATE VIEW silences AS
SELECT host, MAX(last_heartbeat) AS last_heartbeat
FROM (
  SELECT host, MAX(arrived) AS last_heartbeat
  FROM TABLE(SESSION(TABLE agent_records PARTITION BY host, DESCRIPTOR(arrived), INTERVAL '70' SECOND))
  GROUP BY host, window_start, window_end)
GROUP BY host;

CREATE VIEW newest AS
SELECT host, MAX(arrived) AS last_heartbeat, LAST_VALUE(`type`) AS last_type
FROM agent_records
GROUP BY host;

EXECUTE STATEMENT SET
BEGIN
INSERT INTO fleet_clock SELECT tick FROM ticks;
INSERT INTO silent_hosts
SELECT silences.host, silences.last_heartbeat
FROM silences
JOIN newest ON silences.host = newest.host AND silences.last_heartbeat = newest.last_heartbeat
WHERE newest.last_type <> 'qemu.agent.stopping';
END;
