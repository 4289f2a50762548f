"""The demo's products, with their texts in each of the shop's languages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoProduct:
    """What `seed_demo` puts on the shelf. Its picture is named after the slug's last word."""

    sku: str
    slug: str
    price: str
    stock: int
    grams: int
    name: str
    description: str
    #: Name and description in Simplified, and in Traditional Chinese.
    hans: tuple[str, str]
    hant: tuple[str, str]

    def translations(self) -> dict[str, str]:
        """Return the columns of a product that hold its texts in Chinese."""
        return {
            "name_zh_hans": self.hans[0],
            "description_zh_hans": self.hans[1],
            "name_zh_hant": self.hant[0],
            "description_zh_hant": self.hant[1],
        }


PRODUCTS = (
    DemoProduct(
        sku="TEA-01", slug="jasmine-tea", price="38.00", stock=500, grams=150,
        name="Jasmine tea", description="Green tea scented with jasmine, 100 g in a tin.",
        hans=("茉莉花茶", "茉莉窨制的绿茶，罐装 100 克。"),
        hant=("茉莉花茶", "以茉莉薰製的綠茶，罐裝 100 公克。"),
    ),
    DemoProduct(
        sku="POT-01", slug="clay-teapot", price="268.00", stock=40, grams=620,
        name="Clay teapot", description="Unglazed, for one and a half cups.",
        hans=("紫砂壶", "素胎不上釉，容量约一杯半。"),
        hant=("紫砂壺", "素胎不上釉，容量約一杯半。"),
    ),
    DemoProduct(
        sku="CAKE-01", slug="lotus-mooncake", price="22.50", stock=300, grams=180,
        name="Lotus mooncake", description="One egg yolk inside. Keeps for two weeks.",
        hans=("莲蓉月饼", "内含一颗咸蛋黄。保质期两周。"),
        hant=("蓮蓉月餅", "內含一顆鹹蛋黃。保存期限兩週。"),
    ),
    DemoProduct(
        sku="LAMP-01", slug="paper-lantern", price="45.00", stock=120, grams=260,
        name="Paper lantern", description="Red paper on bamboo, 35 cm across.",
        hans=("纸灯笼", "竹骨红纸，直径 35 厘米。"),
        hant=("紙燈籠", "竹骨紅紙，直徑 35 公分。"),
    ),
    DemoProduct(
        sku="STICK-01", slug="maple-chopsticks", price="19.90", stock=400, grams=60,
        name="Maple chopsticks", description="A pair, oiled by hand.",
        hans=("枫木筷子", "一双，手工上油。"),
        hant=("楓木筷子", "一雙，手工上油。"),
    ),
    DemoProduct(
        sku="HONEY-01", slug="acacia-honey", price="56.00", stock=90, grams=700,
        name="Acacia honey", description="From one hillside. 500 g.",
        hans=("洋槐蜂蜜", "采自同一片山坡。500 克。"),
        hant=("洋槐蜂蜜", "採自同一片山坡。500 公克。"),
    ),
    DemoProduct(
        sku="FAN-01", slug="silk-fan", price="88.00", stock=3, grams=90,
        name="Silk fan", description="Painted by hand; no two are alike.",
        hans=("丝绸团扇", "手工绘制，每一把都不相同。"),
        hant=("絲綢團扇", "手工繪製，每一把都不相同。"),
    ),
    DemoProduct(
        sku="INK-01", slug="brush-and-ink", price="129.00", stock=60, grams=450,
        name="Brush and ink", description="A brush, a stone and a stick of ink.",
        hans=("笔墨套装", "毛笔、砚台和墨锭各一。"),
        hant=("筆墨套組", "毛筆、硯台與墨條各一。"),
    ),
    DemoProduct(
        sku="TOY-01", slug="moon-rabbit", price="64.00", stock=0, grams=240,
        name="Moon rabbit", description="Soft, white, and usually sold out.",
        hans=("月兔玩偶", "柔软洁白，总是一兔难求。"),
        hant=("月兔玩偶", "柔軟潔白，總是一兔難求。"),
    ),
)  # fmt: skip
