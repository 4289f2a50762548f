"""One terminal follows the logs of every process."""

import json

from orders.models import Product
from script.shopper import Shopper
from tests.support.processes import ProcessStarter
from tests.support.waiting import eventually


def test_one_terminal_follows_every_process_of_the_system(
    vhost: str, run_process: ProcessStarter, product: Product
) -> None:
    web = run_process.web(LOG_TO_BROKER="1")
    consumer = run_process("run_consumer", "sms", LOG_TO_BROKER="1")
    consumer.wait_for_line("amqp.connected.*role=logs")
    terminal = run_process("mq", "listen", "warren.logs", "#", "--json")
    terminal.wait_for_line("Listening")

    Shopper(web.url).buy(product.slug)

    eventually(lambda: "message.handled" in terminal.output, report=lambda: terminal.output)
    lines = [json.loads(json.loads(line)["body"]) for line in terminal.lines if line.startswith("{")]
    by_text = {line["text"]: line for line in lines}
    handled, placed = by_text["message.handled"], by_text["order_placed"]
    assert handled["process"].endswith(f":{consumer.pid}")
    assert placed["process"] != handled["process"]
    assert placed["request_id"] == handled["request_id"], "the web request's id is in the consumer's line"
