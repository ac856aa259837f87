-- Current state of the fleet. The compacted topic fleet.vms has a message for each VM: its host, its state and the number of its firing
-- alerts. A tombstone follows when the VM has ended. While a VM migrates, two hosts report it; the message has the host on which it runs.

CREATE TABLE fleet_vms (
  vmuuid STRING,
  vmname STRING,
  host STRING,
  run_state STRING,
  `running` BOOLEAN,
  monitor_state STRING,
  qemu_version STRING,
  firing_alerts BIGINT,
  PRIMARY KEY (vmuuid) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'fleet.vms',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'key.format' = 'raw',
  'value.format' = 'json'
);

CREATE VIEW placed_vms AS
SELECT vmuuid, vmname, host, data
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY vmuuid ORDER BY COALESCE(data.`running`, FALSE) DESC, `time` DESC) AS place
  FROM qemu_state
  WHERE `type` = 'qemu.state.vm')
WHERE place = 1;

CREATE VIEW alerts_of_vms AS
SELECT vmuuid, COUNT(*) AS firing_alerts
FROM qemu_state
WHERE `type` = 'qemu.state.alert' AND vmuuid IS NOT NULL
GROUP BY vmuuid;

INSERT INTO fleet_vms
SELECT v.vmuuid, v.vmname, v.host, v.data.run_state, v.data.`running`, v.data.monitor_state, v.data.qemu_version,
  COALESCE(a.firing_alerts, 0)
FROM placed_vms v
LEFT JOIN alerts_of_vms a ON v.vmuuid = a.vmuuid;
