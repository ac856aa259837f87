#!/usr/bin/env python3
"""Pages the person on call: sends each alert of at least severity ERROR to an URL, in the format of PagerDuty's Events API v2.

    pager.py --kafka kafka-1:9092 --url https://events.pagerduty.com/v2/enqueue --key ROUTING_KEY

A batch of alerts is committed after all its pages were accepted. So the service may be killed, or end because the URL does not answer:
after its next start it sends the batch again. The receiver recognises repetitions by `dedup_key`.
"""

import argparse
import asyncio
from typing import Any

import aiohttp

from agent.consumer.kafka_consumer import ConsumedItem, RecordConsumer
from agent.consumer.record_orderer import Gap
from agent.consumer.stream_record import StreamRecord

PAGED = {"ERROR", "FATAL"}
TIMEOUT = aiohttp.ClientTimeout(total=30)


def to_page(item: ConsumedItem, key: str) -> dict[str, Any] | None:
    """Return the page for an item; None if it is not paged. A resolved alert resolves its page."""
    match item:
        case Gap(source=source, next=following):
            # An alert of this VM was lost, so one may be firing without a page.
            page = {"summary": f"an alert of {source} was lost", "source": following.host, "severity": "error"}
            return {"routing_key": key, "event_action": "trigger", "dedup_key": f"lost {source}", "payload": page}
        case StreamRecord(data={"state": "resolved", "fingerprint": fingerprint}):
            return {"routing_key": key, "event_action": "resolve", "dedup_key": fingerprint}
        case StreamRecord(data={"alert": alert, "fingerprint": fingerprint}) if item.severity in PAGED:
            place = " ".join(filter(None, (item.vm_name, item.subject, "on", item.host)))
            page = {"summary": f"{alert}: {place}", "source": item.host, "custom_details": dict(item.data)}
            page["severity"] = "critical" if item.severity == "FATAL" else "error"
            return {"routing_key": key, "event_action": "trigger", "dedup_key": fingerprint, "payload": page}
    return None


async def run(bootstrap: str, topic: str, group: str, url: str, key: str) -> None:
    """Send pages until cancelled, or until the URL refuses one."""
    consumer = RecordConsumer([topic], group=group, client={"bootstrap_servers": bootstrap})
    async with consumer, aiohttp.ClientSession(timeout=TIMEOUT, raise_for_status=True) as http:
        async for items in consumer:
            for page in filter(None, (to_page(item, key) for item in items)):
                async with http.post(url, json=page):
                    pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True, help="addresses of brokers, host:port, separated by commas")
    parser.add_argument("--topic", default="qemu.alerts", help="topic of alerts (default: %(default)s)")
    parser.add_argument("--group", default="pager", help="consumer group (default: %(default)s)")
    parser.add_argument("--url", required=True, help="URL that accepts pages")
    parser.add_argument("--key", required=True, help="routing key")
    options = parser.parse_args()
    asyncio.run(run(options.kafka, options.topic, options.group, options.url, options.key))
