"""The shop's tables, by topic."""

from orders.models.cart import Cart, CartItem
from orders.models.guess import Guess, KnownPlace
from orders.models.order import Document, Order, OrderLine
from orders.models.product import Product
from orders.models.quiet_service import QuietService
from orders.models.red_packet import Campaign, RedPacket
from orders.models.session import VisitorSession
from orders.models.text_message import TextMessage

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
