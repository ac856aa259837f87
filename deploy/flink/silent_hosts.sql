-- Silent hosts. The compacted topic fleet.silent_hosts has a message for each host whose agent sent no heartbeat for 70 s. An agent sends
-- a heartbeat every 30 s. A tombstone follows after the agent's next heartbeat. A host is not silent if its agent was stopped on request.
--
-- The job uses the timestamps of the broker (`message.timestamp.type=LogAppendTime`, set by deploy/kafka/topics.sh), so it does not depend on
-- the clocks of hosts. Its time advances only with heartbeats. So it reports no host while Kafka is down, or when all hosts are silent at
-- the same time. Use the dead man's switch of Alertmanager for these cases (docs/consumers.md).

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

INSERT INTO silent_hosts
SELECT silences.host, silences.last_heartbeat
FROM silences
JOIN newest ON silences.host = newest.host AND silences.last_heartbeat = newest.last_heartbeat
WHERE newest.last_type <> 'qemu.agent.stopping';
