-- Silent hosts: the compacted topic fleet.silent_hosts has a message for each host whose agent sent no heartbeat for 70 s (it sends one
-- every 30 s), and a tombstone when the agent is back. An agent that was stopped on purpose is not silent.
--
-- The time is that of the broker (`message.timestamp.type=LogAppendTime`, set by deploy/kafka/topics.sh), so clocks of hosts do not matter.
-- It advances with the heartbeats of all hosts. So nothing is silent while Kafka is down, nor if all hosts are silent at once: watch for
-- that with the dead man's switch of Alertmanager (docs/consumers.md).

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

CREATE VIEW agent_records AS
SELECT host, `type`, arrived FROM qemu_events
WHERE `type` IN ('qemu.agent.started', 'qemu.agent.heartbeat', 'qemu.agent.stopping');

-- A session ends when a host has been silent for this long. Its last record is the last sign of life.
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

INSERT INTO silent_hosts
SELECT silences.host, silences.last_heartbeat
FROM silences
JOIN newest ON silences.host = newest.host AND silences.last_heartbeat = newest.last_heartbeat
WHERE newest.last_type <> 'qemu.agent.stopping';
