import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.corpus.clean import clean_record
from workers.corpus.records import CLAIM, DOCUMENT, ENTRY, QUESTION, Record
from workers.corpus.repair import repair

EN = "The river rises in the mountains and crosses the plain. Its water turns the mills of nine villages before it reaches the sea."
ZH = "这条河发源于高山，流过平原，最后注入大海。沿岸有许多村庄，人们用河水推动磨坊，灌溉田地。"


# UTF-8 of an even number of Chinese characters can be misread as GBK without a byte being lost.
REREAD = "植物的叶子里有许多叶绿体，它们吸收阳光，把水和二氧化碳变成糖，同时放出氧"


def cleaned(text: str, kind: str = DOCUMENT) -> Record:
    return clean_record(Record(row=0, id="r", kind=kind, text=text, title="River" if kind == ENTRY else None))


@pytest.mark.parametrize(
    "text",
    [EN, ZH, "Ünïcode prose is welcome: naïve cafés, Łódź and Đà Nẵng are places in it.", "水的化学式是H2O，它在0摄氏度结冰，在100摄氏度沸腾。"],
)
def test_clean_prose_is_kept_to_the_letter(text):
    assert (cleaned(text).reason, cleaned(text).text, cleaned(text).original) == (None, text, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Buy now and save on all tools! Free shipping on every order.", "advertisement"),
        ("Only $9.99 today, 20% off for new customers, hurry.", "advertisement"),
        ("Use code SPRING25 at the checkout for every lamp you like in the shop.", "advertisement"),
        ("全场五折，限时优惠三天，加微信 tea8888 领取优惠券。", "advertisement"),
        ("名牌手表厂家直销，假一赔十，货到付款，详情请看下方。", "advertisement"),
        ("This website uses cookies. Read our privacy policy. All rights reserved.", "boilerplate"),
        ("Home | News | Sport | Weather | Contact", "boilerplate"),
        ("版权所有 京ICP备00000000号 未经授权禁止转载", "boilerplate"),
        ("Write to john@example.com or mary@example.com, tel. +44 20 7946 0958", "contact_spam"),
        ("有事请联系我，电话13912345678，邮箱li@example.com", "contact_spam"),
        ("function load(x) { var y = 1; document.write(y); } window.onload = load;", "html_leftovers"),
        ("sdkfj hsdkjfh wkjrh skdjfh sdkjf hwkj rhskdj fhskj dfh", "garbled_text"),
        (ZH.encode().decode("gbk", errors="replace"), "garbled_text"),
        (ZH.encode("gbk").decode("utf-8", errors="replace"), "garbled_text"),
        ("%%%### @@@ &&&& ^^^^ ~~~~ |||| ++++ ====", "garbled_text"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa what aaaaaaaaaaaaaaaaaa", "repeated_characters"),
        ("哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈太好笑了", "repeated_characters"),
        ("Nice post.", "too_short"),
        ("学习了", "too_short"),
    ],
)
def test_what_does_not_belong_is_dropped_with_its_reason(text, reason):
    assert cleaned(text).reason == reason
    assert cleaned(text).stage == "cleaned"


@pytest.mark.parametrize(
    "text",
    [
        "The code BLOCKS of a program are compiled with code generated before.",
        "The library (https://example.org/sources) reads and writes images in many formats.",
        "In 1923 a loaf cost billions; prices doubled within days and customers paid twice a day.",
        "A market is a place where buyers and sellers meet and agree on a price for their goods.",
        "微信是一种即时通信软件，许多中国人每天用它聊天和付款。",
        "优惠券是商家发行的凭证，持有人购物时可以少付一部分钱，经济学家研究它对价格的影响。",
    ],
)
def test_texts_about_trade_links_or_code_are_kept(text):
    assert cleaned(text).reason is None


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        (f"{EN} Subscribe to our newsletter and get a free gift!", EN),
        (f"Share this article on Facebook and Twitter.\n{EN}", EN),
        (f"{ZH}扫码关注公众号，每天学一点新知识。", ZH),
        (f"首页 > 知识 > 百科 > 正文\n{ZH}", ZH),
        (f"<script>var a = 1;</script><p>{EN}</p>", EN),
        (f"<div><p>{EN.replace('river', '<b>river</b>').replace('. Its', '.&nbsp;Its')}</p></div>", EN),
        (EN.replace("Its", "It’s").encode().decode("cp1252"), EN.replace("Its", "It’s")),
        (REREAD.encode().decode("gb18030"), REREAD),
        (f"  {EN.replace(' ', '   ')}\u200b", EN),
    ],
)
def test_a_good_text_is_freed_of_what_surrounds_it(dirty, clean):
    done = cleaned(dirty)

    assert (done.reason, done.text) == (None, clean)
    assert done.original == (dirty if dirty != clean else None)


def test_what_people_wrote_by_hand_is_dropped_only_when_garbled():
    assert cleaned("Buy now is a phrase of advertisements.", kind=ENTRY).reason is None
    assert cleaned("No.", kind=CLAIM).reason is None
    assert cleaned("sdkfj hsdkjfh wkjrh skdjfh sdkjf hwkj rhskdj", kind=ENTRY).reason == "garbled_text"
    hidden = Record(row=0, id="q", kind=QUESTION, question="Why?", answer="\u200b\u200b")
    assert clean_record(hidden).reason == "missing_fields"


def test_the_language_is_told_by_script_and_a_given_one_is_kept():
    assert [cleaned(text).lang for text in (EN, ZH)] == ["en", "zh"]
    assert clean_record(Record(row=0, id="r", kind=DOCUMENT, text=EN, lang="nl")).lang == "nl"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_repairing_twice_changes_no_more_than_once_and_cleaning_never_fails(text):
    done = clean_record(Record(row=0, id="r", kind=DOCUMENT, text=text))

    assert done.kept == (done.reason is None)
    if done.kept:
        assert clean_record(Record(row=0, id="r", kind=DOCUMENT, text=done.text)).text == repair(done.text)
