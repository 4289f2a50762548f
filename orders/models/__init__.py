"""The shop's tables, by topic."""

from orders.models.cart import Cart, CartItem
from orders.models.order import Document, Order, OrderLine
from orders.models.product import Product
from orders.models.red_packet import Campaign, RedPacket
from orders.models.text_message import TextMessage
from orders.models.visits import Guess, KnownPlace, QuietService, VisitorSession

__all__ = [
    "Campaign",
    "Cart",
    "CartItem",
    "Document",
    "Guess",
    "KnownPlace",
    "Order",
    "OrderLine",
    "Product",
    "QuietService",
    "RedPacket",
    "TextMessage",
    "VisitorSession",
]
