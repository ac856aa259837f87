-- Shared pools that will be full within a day. For each pool with VMs on several hosts, the topic fleet.filling_pools has a message per
-- minute: the free bytes of the pool, and the growth of all VMs that use it. One agent sees only the VMs of its own host.
-- The job treats pools of several hosts as one pool if they have the same name, type and size.

CREATE TABLE filling_pools (
  minute_start TIMESTAMP_LTZ(3),
  pool STRING,
  pool_type STRING,
  hosts BIGINT,
  vms BIGINT,
  free_bytes BIGINT,
  growth_bytes_per_second DOUBLE,
  time_to_full_seconds DOUBLE,
  fastest_vm STRING,
  PRIMARY KEY (minute_start, pool, pool_type) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'fleet.filling_pools',
  'properties.bootstrap.servers' = 'kafka-1:9092',
  'key.format' = 'json',
  'value.format' = 'json'
);

CREATE VIEW pool_minutes AS
SELECT window_start, window_end, host, data.pool AS pool, data.`type` AS pool_type, MAX(data.size_bytes) AS size_bytes,
  MIN(data.free_bytes) AS free_bytes
FROM TABLE(TUMBLE(TABLE qemu_samples, DESCRIPTOR(arrived), INTERVAL '1' MINUTE))
WHERE `type` = 'qemu.sample.pool'
GROUP BY window_start, window_end, host, data.pool, data.`type`;

CREATE VIEW disk_growth AS
SELECT window_start, window_end, host, data.pool AS pool, vmuuid, MAX(vmname) AS vmname, subject,
  MAX(data.growth_bytes_per_second) AS growth_bytes_per_second
FROM TABLE(TUMBLE(TABLE qemu_samples, DESCRIPTOR(arrived), INTERVAL '1' MINUTE))
WHERE `type` = 'qemu.sample.block_space' AND data.pool IS NOT NULL
GROUP BY window_start, window_end, host, data.pool, vmuuid, subject;

CREATE VIEW vm_growth AS
SELECT window_start, window_end, host, pool, vmuuid, MAX(vmname) AS vmname, SUM(growth_bytes_per_second) AS growth_bytes_per_second
FROM disk_growth
GROUP BY window_start, window_end, host, pool, vmuuid;

-- For fastest_vm, the growth is written with a fixed width before the name of the VM. So MAX selects the VM that grows fastest.
CREATE VIEW shared_pool_minutes AS
SELECT p.window_start, p.window_end, p.pool, p.pool_type, p.size_bytes,
  COUNT(DISTINCT p.host) AS hosts,
  COUNT(DISTINCT g.vmuuid) AS vms,
  MIN(p.free_bytes) AS free_bytes,
  SUM(g.growth_bytes_per_second) AS growth_bytes_per_second,
  SUBSTRING(MAX(LPAD(CAST(CAST(g.growth_bytes_per_second AS BIGINT) AS STRING), 20, '0') || g.vmname) FROM 21) AS fastest_vm
FROM pool_minutes p
JOIN vm_growth g
  ON p.window_start = g.window_start AND p.window_end = g.window_end AND p.host = g.host AND p.pool = g.pool
GROUP BY p.window_start, p.window_end, p.pool, p.pool_type, p.size_bytes;

INSERT INTO filling_pools
SELECT window_start, pool, pool_type, hosts, vms, free_bytes, growth_bytes_per_second,
  CAST(free_bytes AS DOUBLE) / growth_bytes_per_second AS time_to_full_seconds, fastest_vm
FROM shared_pool_minutes
WHERE hosts > 1 AND growth_bytes_per_second > 0 AND CAST(free_bytes AS DOUBLE) / growth_bytes_per_second < 86400;
