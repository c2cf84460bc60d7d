"""Texts that tokenizers disagree on: every script, marks, emoji, controls, odd spaces, markup,
broken encodings, any length."""

import random

ALPHABETS = {
    "ascii": "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digits": "0123456789٣٤५৬½²①Ⅷ〇",
    "punctuation": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—–«»“”‘’•·§¶†‡‽¿¡",
    "latin": "éèüößñçåøœæžşğıİŁđþðĸŉſﬁﬂǆ",
    "greek and cyrillic": "αβγδεζςΣΩабвгґдеёжзийїЇЩъ",
    "right to left": "אבגדהוזחטשׁםןابتثجحخدمَُِّْلا",
    "indic and thai": "अआइकखगघिीुूक्षไทยกขฃคั்้தமிழ்",
    "ideographs": "日本語漢字中文簡体繁體㐀𠀀𪜶豈﨑々〆",
    "kana and hangul": "あいうえおがぎパピｱｲｳﾞﾟ한국어가각각",
    "marks": "\u0301\u0308\u0327\u0323\u20dd\u0489\ufe0f\ufe0e\u200d\u3099",
    "emoji": "😀😃🥰👍🏽👩\u200d🚀🏴\u200d☠️🇩🇪🇯🇵❤️☀️♥©®™🫠",
    "spaces": (
        " "
        "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
    ),
    "invisible": "\u200b\u200c\u200e\u200f\u202a\u202e\u2060\u2067\ufeff\xad\u034f\u061c",
    "controls": "\x00\x01\x07\x08\x1b\x7f\x80\x9f\ufffd\ufffe\uffff\ue000\U000f0000\U0010ffff",
    "mathematical": "𝒜𝓑𝔠𝕯𝖊𝟘𝟿ℵ∑∫√∞≠≤⊕⇒ℌℝ",
    "wide": "ＡＢＣａｂｃ０１２！？（）",
    "reserved": "▁▅Ġ▂Ċ",
}
WORDS = [
    "a photo of",
    "don't",
    "I'M",
    "they'll",
    "we'Ve",
    "x's",
    "&amp;",
    "&amp;amp;lt;",
    "&#8217;",
    "&nbsp;",
    "schÃ¶n",
    "â€™",
    "cafÃ©",
    "<b>bold</b>",
    "https://example.org/?q=1&r=%20#a",
    "user@example.com",
    "#tag",
    "@you",
    "IMG_0042.JPG",
    "C:\\temp\\x.png",
    "1,234.56",
    "3.14e-10",
    "2026-11-29",
    "snake_case_word",
    "kebab-case-word",
    "CamelCaseWord",
    "...",
    "----",
    "!!!???",
    "None",
    "null",
    "nan",
    "NA",
    "\\n",
    "\\u00e9",
    "ＦＵＬＬ",
    "ﬁne",
    "Straße",
    "İstanbul",
    "ǅungla",
    "naïve",
    "e\u0301te\u0301",
    "1️⃣",
    "👨\u200d👩\u200d👧\u200d👦",
    "日本の切手 1950年",
    "ไทยแลนด์",
]
FIXED = [
    "",
    " ",
    "\n",
    "\t \r\n",
    "a",
    ".",
    "\u200b",
    "\ufeff",
    "\x00",
    "'",
    "''",
    "''s",
    "'s's",
    "_",
    "▁",
    "\u0301",
    "🏽",
    "\u200d",
    "a\u200db",
    "😀" * 200,
    "w" * 3000,
    "日" * 2000,
    "a " * 2000,
    "\u0301" * 500,
    "!" * 1000,
    "1" * 1000,
    "\x00" * 300,
    " " * 3000,
    "&amp;" * 300,
    "ab\r\ncd",
    "ab\n\n\ncd",
    "a\xa0b",
    "\ufeffstart",
    "end\ufeff",
    "x\u2028y\u2029z",
    "[CLS",
    "[ SEP ]",
    "<pad",
    "</ s>",
    "<|start",
]


def nasty_texts(n, seed=0):
    """`FIXED`, and random ones up to `n`."""
    rng = random.Random(seed)
    kinds = list(ALPHABETS)
    out = list(FIXED)
    while len(out) < n:
        parts = []
        for _ in range(rng.choice((1, 2, 3, 5, 8, 20))):
            if rng.random() < 0.35:
                parts.append(rng.choice(WORDS))
            else:
                alphabet = ALPHABETS[rng.choice(kinds)]
                parts.append("".join(rng.choices(alphabet, k=rng.choice((1, 2, 4, 7, 15)))))
        out.append(rng.choice(("", " ", " ", "  ")).join(parts))
    return out[:n]
