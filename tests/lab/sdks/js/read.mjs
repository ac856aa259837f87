// Reads Kafka messages as JSON lines, and writes the CloudEvents that the official JavaScript SDK reads from them.
import { createInterface } from "node:readline";
import { Kafka } from "cloudevents";

for await (const line of createInterface({ input: process.stdin })) {
  const { headers, key, value } = JSON.parse(line);
  const event = Kafka.toEvent({ headers, key, value, body: value });
  event.validate();
  const { data, ...attributes } = event.toJSON();
  console.log(JSON.stringify({ attributes, data }));
}
