"""Named regular expressions for what does not belong into a corpus: advertisements, contacts, boilerplate, garbled text.

A rule looks at one sentence or one text and answers yes or no; `clean.py` decides what follows.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ftfy.badness import is_bad

from workers.corpus.encodings import common_chinese
from workers.corpus.languages import count_words

_HAN = re.compile(r"[\u4e00-\u9fff]")

# -- advertisements: one strong phrase, or two weak ones, in a sentence

STRONG_ADVERTISEMENT = re.compile(
    r"""\b(?:
      buy\ (?:now|today|one\s+get\s+one) | (?:order|shop|act|call|apply|subscribe|enroll?)\ (?:now|today)\b(?!\s+(?:known|called)) | limited[-\s]time\ (?:offer|deal|only)
    | click\ (?:here|the\ link|below|now) | (?:use|enter|with|apply)\ (?:the\ )?(?:promo|discount|coupon|voucher)?\ ?code\ (?-i:[A-Z0-9]{3,}) | (?:promo|coupon|discount|voucher)\ codes?
    | free\ (?:shipping|delivery|gift|quote|consultation|trial) | money[-\s]back\ guarantee | satisfaction\ guaranteed | risk[-\s]free
    | (?:best|lowest|unbeatable|rock[-\s]bottom)\ (?:prices?|deals?) | special\ (?:offer|promotion|discount) | (?:mega|flash|clearance|summer|winter|black\ friday)\ sale
    | while\ (?:stocks?|supplies)\ lasts? | don'?t\ miss\ (?:out|this) | sign\ up\ (?:now|today|for\ free) | download\ (?:now|our\ free)
    | earn\ (?:up\ to\ )?[$€£]\s?[\d,]+ | make\ money\ (?:fast|online|from\ home) | get\ rich | work\ from\ home\ and | no\ credit\ (?:check|card) | instant\ (?:approval|loan)
    | online\ (?:casino|betting|pharmacy) | casino\ bonus | viagra | cialis | lose\ (?:\d+\ )?(?:pounds|kilos|weight)\ (?:fast|in\ \d) | miracle\ (?:cure|pill|diet)
    | subscribe\ to\ (?:our|my|the)\ (?:newsletter|channel|mailing) | follow\ us\ on | visit\ our\ (?:shop|store|website|showroom|site) | add\ to\ cart
    | hot\ singles | you(?:'ve|\ have)\ (?:won|been\ selected) | congratulations[,!]\ you | claim\ your\ (?:prize|reward|free|gift)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
WEAK_ADVERTISEMENT = re.compile(
    r"""\b(?: \d{1,2}\s?%\ (?:off|discount) | discount(?:s|ed)? | (?:on|for)\ sale | hurry | bargains? | deals? | offers? | promotions? | guaranteed | free\b
    | cheap(?:est)? | affordable | only\ [$€£]\s?\d+ | [$€£]\s?\d+(?:\.\d\d)? | today\ only | exclusive | best[-\s]sell(?:er|ing) | customers? | in\ stock | premium | !{2,} )""",
    re.IGNORECASE | re.VERBOSE,
)
STRONG_ADVERTISEMENT_ZH = re.compile(
    r"加(?:我)?(?:微信|薇信|威信|V信|v信|VX|vx|QQ|群|好友领)|(?:微信|薇信|VX|vx|v信|V信|QQ)(?:号|群)?\s*[:：]\s*[A-Za-z0-9_-]{4,}|扫(?:描)?(?:码|二维码)(?:关注|领取|添加|下载|进群|咨询)?"
    r"|点击(?:下方|下面|这里|此处|链接|购买|领取|下单|下载|查看详情|进入|立即)|限时(?:优惠|抢购|特价|秒杀|特惠|折扣|促销|免费|领取)|全场\s*[\d一二三四五六七八九]+(?:\.\d)?\s*折|(?:全国|全场|满\d+元?)?包邮"
    r"|立即(?:购买|抢购|下单|订购|咨询|报名|领取|加入|下载|注册|预约)|马上(?:购买|抢购|下单|订购|咨询|报名|领取)|(?:领取?|送|赠送?)(?:优惠|折扣|代金|购物)?券|免费(?:领取|试听|试用|送货|咨询|赠送)|代开(?:发票|证明)|刷单|日赚|月入[\d一二三四五六七八九十]*(?:万|\d{3})"
    r"|兼职(?:日结|招聘|赚)|无抵押|秒到账|低息贷款|(?:在线|线上|澳门|网上)(?:赌场|博彩|娱乐城)|中奖(?:计划|名额)|包过|办证|买[一二三\d]送[一二三\d]|错过(?:等一年|不再|就没)|(?:咨询|订购|服务|招商|客服|联系)(?:热线|电话)"
    r"|欢迎(?:选购|订购|来电|咨询|加盟|致电)|厂家直销|招商加盟|正品(?:保证|保障)|假一赔[十\d]|货到付款|(?:跳楼|吐血|清仓)(?:价|甩卖|大甩卖)|关注(?:我们的)?(?:公众号|微信)|一键(?:下单|购买)|亏本|秒杀价|开业酬宾|充[\d一二三四五六七八九十百千]+送|特价(?:促销|出售|销售)"
)
WEAK_ADVERTISEMENT_ZH = re.compile(
    r"优惠|折扣|促销|热卖|热销|正品|抢购|秒杀|爆款|特价|特惠|亲们|客服|现货|下单|订购|赠品|返现|好评|仅售|只要\d+元|原价|\d+元|免费|全网最低|最低价|数量有限|先到先得|机会难得|!{2,}|！{2,}"
)


def is_advertisement(sentence: str) -> bool:
    if STRONG_ADVERTISEMENT.search(sentence) or _different(WEAK_ADVERTISEMENT, sentence) >= 3:
        return True
    return bool(_HAN.search(sentence)) and (bool(STRONG_ADVERTISEMENT_ZH.search(sentence)) or _different(WEAK_ADVERTISEMENT_ZH, sentence) >= 3)


def _different(pattern: re.Pattern[str], sentence: str) -> int:
    return len({match.lower() for match in pattern.findall(sentence)})


# -- ways to be reached, where no knowledge is

LINK = re.compile(r"(?:https?://|www\.)\S+")
CONTACT = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.]+|(?<!\d)1[3-9]\d{9}(?!\d)|(?<![\d.])\+?\d{1,3}[ -]?\(?\d{2,4}\)?[ -]\d{3,4}[ -]?\d{3,4}(?!\d)|(?<!\d)400[- ]?\d{3,4}[- ]?\d{3,4}(?!\d)"
    r"|(?<!\d)0\d{2,3}-\d{7,8}(?!\d)|\b1-?800-[\dA-Z-]{7,}|(?:微信|薇信|QQ|qq|VX|vx|WeChat|Telegram|WhatsApp)\s*(?:号|群|ID|id)?\s*[:：]?\s*[+@]?[A-Za-z0-9_-]{5,}"
)
CONTACT_CALL = re.compile(
    r"\b(?:call|phone|tel|telephone|contact|text|dial|whatsapp|email|e-mail|reach|write|visit|message)\b|联系|电话|拨打|来电|致电|咨询|微信|热线|邮箱|手机|加我|访问|网址",
    re.IGNORECASE,
)
MAX_CONTACT_WORDS = 60
MIN_WORDS_BESIDE_LINKS = 6  # a link beside a sentence is a source; a few words around links are a directory


def is_contact_spam(text: str) -> bool:
    """Short text that mostly says where somebody can be reached."""
    bare = LINK.sub(" ", text)
    if bare != text and count_words(bare) < MIN_WORDS_BESIDE_LINKS:
        return True
    contacts = CONTACT.findall(bare)
    if not contacts:
        return False
    if sum(map(len, contacts)) > 0.3 * len(text):
        return True
    words = count_words(text)
    calls = bool(CONTACT_CALL.search(text))
    return words <= MAX_CONTACT_WORDS and (len(contacts) >= 3 or (calls and (len(contacts) >= 2 or words <= MAX_CONTACT_WORDS // 2)))


# -- what surrounds a page

BOILERPLATE = re.compile(
    r"""\b(?: all\ rights\ reserved | (?:this|our)\ (?:web)?site\ uses\ cookies | we\ use\ cookies | accept\ (?:all\ )?cookies | cookie\ (?:policy|settings|preferences)
    | privacy\ policy | terms\ (?:of\ (?:service|use)|and\ conditions) | enable\ javascript | javascript\ (?:is\ )?(?:disabled|required) | page\ not\ found | error\ 40[34]
    | skip\ to\ (?:main\ )?content | back\ to\ top | (?:log|sign)\ ?in\ (?:or|to)\ (?:register|comment|continue|sign|your|view) | forgot\ (?:your\ )?password | leave\ a\ (?:comment|reply)
    | share\ (?:this|on)\ (?:post|article|page|facebook|twitter) | posted\ (?:by|on|in)\ | read\ more | related\ (?:posts|articles) | powered\ by\ (?:wordpress|\w+\ cms) | copyright\ (?:©|\(c\)|\d{4})
    | previous\ (?:post|article) | next\ (?:post|article) | you\ are\ here: | print\ this\ page | loading\.\.\. | the\ requested\ url )
    | ©\s?\d{4}""",
    re.IGNORECASE | re.VERBOSE,
)
BOILERPLATE_ZH = re.compile(
    r"版权所有|ICP备|公网安备|上一篇|下一篇|返回(?:顶部|首页)|(?:请先?|立即)登录|注册账号|忘记密码|隐私政策|用户协议|网站地图|友情链接|关于我们|未经(?:授权|许可|允许).{0,6}(?:转载|复制)|转载请注明|阅读全文|查看更多|相关(?:阅读|文章|推荐)|"
    r"责任编辑|本站(?:内容|声明|使用)|当前位置|点击(?:数|次数|率)?[:：]|浏览次数|分享到|收藏本站|页面不存在|正在加载|打印本页"
)
MENU_SEPARATOR = re.compile(r"\s[|>»·•/]\s")
MENU_PIECES = 4


def is_boilerplate(sentence: str) -> bool:
    if _says_boilerplate(sentence):
        return True
    pieces = MENU_SEPARATOR.split(sentence)
    return len(pieces) >= MENU_PIECES and all(count_words(piece) <= 4 for piece in pieces)


def _says_boilerplate(text: str) -> bool:
    return bool(BOILERPLATE.search(text) or (_HAN.search(text) and BOILERPLATE_ZH.search(text)))


def may_hold_foreign_sentence(text: str) -> bool:
    """False where no sentence of `text` can meet a sentence rule, which spares most texts being cut up."""
    return is_advertisement(text) or _says_boilerplate(text) or len(MENU_SEPARATOR.findall(text)) >= MENU_PIECES - 1


# -- what is left of a page's code

CODE_LEFTOVER = re.compile(
    r"function\s*\w*\s*\([^)]*\)\s*\{|\bvar\s+\w+\s*=|document\.\w+|window\.\w+|[.#]?[\w-]+\s*\{\s*[\w-]+\s*:[^}]*\}|\}\s*\)\s*;|@media|/\*.*?\*/|\bclass=\"|\bstyle=\"|\bhref=|&(?:nbsp|amp|lt|gt|quot|#\d+);",
    re.DOTALL,
)


def has_html_leftovers(text: str) -> bool:
    found = CODE_LEFTOVER.findall(text)
    return bool(found) and (len(found) >= 3 or sum(map(len, found)) > 0.3 * len(text))


# -- garbled text

REPLACEMENT = "\ufffd"
DOUBLE_DECODED = re.compile("锟斤拷|烫烫烫|屯屯屯|鐨勪|锛屼|銆傘|鈥檚|鈥渟|鈥�")
MAX_RARE_SHARE = 0.4  # of Han characters: clean texts stay below 0.34 (a list of elements), UTF-8 read as GBK is above 0.44
MIN_HAN = 6
MAX_SYMBOL_SHARE = 0.35
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\-，。、；：！？“”‘’（）《》—…%°℃·]|_")
_NOT_SPACE = re.compile(r"\S")
_LATIN_WORD = re.compile(r"[A-Za-z]{3,}")
_VOWEL = re.compile(r"[aeiouyAEIOUY]")
MAX_VOWELLESS_SHARE = 0.4


def is_garbled(text: str) -> bool:
    """Text whose encoding was lost, or that is not language at all."""
    if not text.isascii():
        if text.count(REPLACEMENT) * 100 > len(text) or DOUBLE_DECODED.search(text) or is_bad(text):
            return True
        han = _HAN.findall(text)
        if len(han) >= MIN_HAN and sum(c not in common_chinese() for c in han) > MAX_RARE_SHARE * len(han):
            return True
    if len(_SYMBOL.findall(text)) > MAX_SYMBOL_SHARE * len(_NOT_SPACE.findall(text)):
        return True
    words = _LATIN_WORD.findall(text)
    return len(words) >= 4 and sum(not _VOWEL.search(w) and not w.isupper() for w in words) > MAX_VOWELLESS_SHARE * len(words)


REPEATED = re.compile(r"([^\W\d_])\1{5,}|([^\s\w])\2{9,}|(\S.{1,15}?)\3{4,}", re.DOTALL)


def has_repeated_characters(text: str) -> bool:
    found = sum(len(match[0]) for match in REPEATED.finditer(text))
    return found >= 8 and found > 0.2 * len(text)


# -- too short

MIN_WORDS = {"zh": 8, "ja": 8}
MIN_WORDS_ELSE = 4


def is_too_short(text: str, lang: str) -> bool:
    return count_words(text) < MIN_WORDS.get(lang, MIN_WORDS_ELSE)


# What is left when advertisements are cut out of a short text is the rest of the advertisement.
MIN_WORDS_LEFT = 15


def is_remnant(text: str) -> bool:
    return count_words(text) < MIN_WORDS_LEFT


@dataclass(frozen=True)
class Rule:
    """`reason` is what the report counts dropped rows under."""

    reason: str
    applies: Callable[[str], bool]


# Looked for in each sentence: the sentence is cut out, or, where most of a text is such, the text is dropped.
SENTENCE_RULES = (Rule("advertisement", is_advertisement), Rule("boilerplate", is_boilerplate))
# Looked for in the whole text, in this order, before any sentence is cut out. The first that applies drops it.
TEXT_RULES = (
    Rule("garbled_text", is_garbled),
    Rule("html_leftovers", has_html_leftovers),
    Rule("repeated_characters", has_repeated_characters),
)
