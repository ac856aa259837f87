#!/usr/bin/env python3
"""Pages the person on call: sends each alert of at least severity ERROR to an URL, in the format of PagerDuty's Events API v2.

    pager.py --kafka kafka-1:9092 --url https://events.pagerduty.com/v2/enqueue --key ROUTING_KEY

At each start, it sends pages for all firing alerts. It commits an alert only after the URL has accepted its page. If the pager is killed or
the URL does not respond, the next start sends the pages again. The receiver detects repetitions by `dedup_key`.
"""

import argparse
import asyncio
from typing import Any

import aiohttp

from agent.consumer.kafka_consumer import ConsumedItem, RecordConsumer
from agent.consumer.record_orderer import Gap
from agent.consumer.state_reader import StateReader
from agent.consumer.stream_record import StreamRecord

PAGED = {"ERROR", "FATAL"}


def to_page(item: ConsumedItem, key: str) -> dict[str, Any] | None:
    """Return the request body for an item: to open a page, or to resolve the page of a resolved alert. None if no request is needed."""
    match item:
        case Gap(source=source, next_record=following):
            # Records of this VM were lost, so an alert may be firing without a page.
            loss = {"summary": f"an alert of {source} was lost", "source": following.host, "severity": "error"}
            return {"routing_key": key, "event_action": "trigger", "dedup_key": f"lost {source}", "payload": loss}
        case StreamRecord(data={"state": "resolved", "fingerprint": fingerprint}):
            return {"routing_key": key, "event_action": "resolve", "dedup_key": fingerprint}
        case StreamRecord(data={"alert": alert, "fingerprint": fingerprint}) if item.severity in PAGED:
            place = " ".join(filter(None, (item.vm_name, item.subject, "on", item.host)))
            page: dict[str, Any] = {
                "summary": f"{alert}: {place}",
                "source": item.host,
                "custom_details": dict(item.data),
            }
            page["severity"] = "critical" if item.severity == "FATAL" else "error"
            return {"routing_key": key, "event_action": "trigger", "dedup_key": fingerprint, "payload": page}
    return None


async def run(kafka: str, topics: tuple[str, str], url: str, key: str) -> None:
    """Send pages until cancelled, or until the URL rejects a page.

    Args:
        kafka: addresses of brokers, separated by commas.
        topics: the alert topic and the state topic.
        url: URL that accepts pages.
        key: routing key of the pages.
    """
    client = {"bootstrap_servers": kafka}
    alerts = RecordConsumer(topics[:1], group="pager", client={**client, "auto_offset_reset": "latest"})
    async with alerts, StateReader(topics[1], client=client) as states, aiohttp.ClientSession() as http:
        unsent: list[ConsumedItem] = [*states.state.alerts()]
        async for items in alerts:
            for page in filter(None, (to_page(item, key) for item in (*unsent, *items))):
                async with http.post(url, json=page, raise_for_status=True):
                    pass
            unsent.clear()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kafka", required=True, help="addresses of brokers, host:port, separated by commas")
    parser.add_argument(
        "--topics", nargs=2, default=("qemu.alerts", "qemu.state"), help="the alert topic and the state topic"
    )
    parser.add_argument("--url", required=True, help="URL that accepts pages")
    parser.add_argument("--key", required=True, help="routing key")
    options = parser.parse_args()
    asyncio.run(run(options.kafka, options.topics, options.url, options.key))
