"""Penn Treebank tokens of captions, as the COCO caption evaluation splits them, without Java.

The COCO caption evaluation runs PTBTokenizer of Stanford CoreNLP 3.4.1. The rules here reproduce its output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache


def _any(words: str) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(words.split(), reverse=True)))})"


# Abbreviations keep their full stop. Those that may close a sentence keep it even right before one more letter.
_ABBREVIATION = _any(
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft gen gov govs hon"
    " insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen"
    " sens sfc sgt spc st ste supt treas vs wm"
)
_CLOSING = _any(
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga"
    " inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn ph.d plc rd rt"
    " sep sept seq sq sr sys tel tenn thu tue tues univ va vt wed wis wisc wyo"
)
_STATES = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_COMPANIES = "mfg mtg ppte ppty pte ptes pty ptys"
_NUMBERED = _any("art ca fig figs no nos op pp prop")
# Before these words the full stop of a single letter is that of the sentence: "plan b. The".
_STARTERS = (
    "A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our"
    " She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
_EXTENSION = _any(
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql"
    " tar txt wav x xml zip"
)
_ODD_WORD = (
    r"c'mon|(?:dunkin|somethin|ol)['’]|e['’]er|s['’]mores|li['’]l|nat['’]l|ev['’]ry|nor['’]easter|c['’]est|cap['’]n"
    r"|o['’`]o"
)

_NUMERAL = "²³¹¼-¾⁰-₟⅐-↋①-⓿"  # Python counts these among the letters
_LETTER = rf"[^\W\d_{_NUMERAL}]"
_ALNUM = rf"[^\W_{_NUMERAL}]"
_PART = rf"(?:[dlo]['’`]{_ALNUM})?{_ALNUM}+"
_SLASHED = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_STOP = r"(?:\.(?=[,;:]))?"  # "bus.," keeps the full stop
_ADDRESS = r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_PATH = rf"(?:/{_ADDRESS})?"
_ATTRIBUTE = r"[ \t]+[\w:.-]+(?:[ \t]*=[ \t]*(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'<>]+))?"
_FACE = r"[\^x=~<>'-]"

# The longest match at a place is the token.
_PATTERNS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # words, also with full stops, hyphens, apostrophes or slashes in them
        rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*{_STOP}",
        rf"{_PART}(?:[_\-‐‑]{_PART})*{_STOP}",
        rf"{_ALNUM}(?:{_ALNUM}|[.,])*(?:-(?:[a-z](?:\.[a-z])+\.|{_ALNUM}+))+{_STOP}",
        rf"(?-i:[A-HJ-XZn])['’`]{_LETTER}{{2,}}",
        r"(?-i:[A-Za-z]+[aeiouyAEIOUY]['’`][aeiouA-Z])[a-z]*",
        rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}",
        _ODD_WORD,
        # contractions and elisions
        r"'(?:s|d|m|re|ve|ll)(?![a-z])|’(?:s|d|m|re|ve|ll)|n['’`]t",
        rf"['’](?:em|till?|cause|n['’]|[2-9]0s|\d\d(?!\S))|'t(?=is|was)|'n(?!\S)|’n|[djl]['’]|y['’](?={_LETTER})",
        # acronyms and abbreviations
        r"[a-z](?:\.[a-z])+\.?",
        rf"(?:{_CLOSING}|{_ABBREVIATION}|{_NUMBERED}(?=\.\s?\d))\.",
        rf"(?-i:{_any(f'{_STATES} {_STATES.upper()} {_COMPANIES} {_COMPANIES.title()}')})\.",
        rf"[a-z]\.(?-i:(?!\s+{_any(f'{_STARTERS} {_STARTERS.upper()}')}\s))",
        rf"(?-i:[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+){_STOP}",
        # numbers, dates, fractions, telephone numbers
        r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
        r"\d{1,2}[/-]\d{1,2}[/-]\d{2,4}",
        r"(?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4}",
        r"(?:\(\d{2,3}\) ?|(?:\+{0,2}\d{2,4}[- ])?\d{2,4}[- ]|\+{0,2}\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}",
        # mark-up, addresses, files
        rf"</?[a-z][\w:.-]*(?:{_ATTRIBUTE})*[ \t]*/?>|<[!?][a-z-][^>\n]*>|&(?:amp|lt|gt|quot|apos|nbsp|[mn]dash|#\d+);",
        rf"https?://{_ADDRESS}|www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}{_PATH}",
        rf"(?-i:(?:[a-z#%&*+~]+\.)+(?:com|net|org|edu)){_PATH}",
        r"<?[a-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?|@[a-z_][a-z0-9_]*|#[a-z]+",
        rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.{_EXTENSION}(?=[\s.?!,]|\Z)",
        # signs and faces
        r"(?:anti|pro)-|c\+\+|[cf]#|(?-i:[A-Z]+\$)|[!?]+|\*+|_+|-+|\.{3,}|''?|``?|#+|@+|<<|>>|\\\*",
        rf"(?-i:[<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]])(?!{_ALNUM})|{_FACE}_{_FACE}|\({_FACE}[_.-]?{_FACE}\)",
        r"[‘’“”‛]{1,2}|[²³¹⁰-₎]+",
        r"[!-/:-@\[-`{-~¡-©«¬®-´¶-¿×÷‖‗‚„†-•‰-‸‹-›※-⁂⁄–-—“”‘’…⁰-₎₤€℀-⅏⅓-⅞←-⯿、。！-／：-･￠￡￥￦]",
    )
]
# What has to follow these is part of their length: "do" before "n't" beats the longer "don".
_FOLLOWED = re.compile(
    rf"({_CLOSING}\.|(?-i:{_any(_STATES)})\.)-?[a-z0-9]|([a-z]*[a-mo-z])n['’`]t|({_LETTER}+)['’](?:[sdm]|re|ve|ll)",
    re.IGNORECASE,
)
_CURLY = re.compile(r"’(?:[sdm]|re|ve|ll)|n’t|[‘’“”‛]+")
_STRAIGHT = str.maketrans({"’": "'", "‘": "`", "‛": "`", "“": "``", "”": "''"})
_REPLACED = {
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"},
    **{"lemme": "lem me", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "€": "$", "¤": "$", "£": "#"},
    **{"¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "&lt;": "<", "&gt;": ">"},
}
# pycocoevalcap drops these; "(" stays, because its list has "-LRB-" in capitals only.
_PUNCTUATION = set("?!,:;\"'`-«»‹›–—…") | {"''", "``", "--", "---", "----"}
_PUNCTUATION |= {"&quot;", "&apos;", "&nbsp;", "&mdash;", "&ndash;"}
# Where tokens depend on what follows white space; all other words are split by themselves, once each.
_ACROSS_SPACE = re.compile(r"\d\)?\s\(?\d|<[a-zA-Z!?/]|(?<![A-Za-z])[A-Za-z]\.\s|\.\s\d")


def tokenize_all(texts: Sequence[str]) -> list[str]:
    """Tokenize captions as pycocoevalcap does, which passes all of them to Java as one text; see ``tokenize``.

    Args:
        texts: N captions.

    Returns:
        The tokens of each caption with single spaces between them.
    """
    return [tokenize(*pair) for pair in zip(texts, [*texts[1:], ""], strict=True)]


def tokenize(text: str, following: str = "A") -> str:
    """Tokenize a caption as pycocoevalcap's PTBTokenizer does: lower-case PTB tokens without punctuation.

    Equal to Java's output on all 616,767 captions of COCO 2014, with the caption that follows each passed as
    ``following`` (``benchmarks/ptb_tokenizer.py``). Java reads the captions as one text, so where one ends in a letter
    and a full stop, such as "the letter K.", the last word is "k" or "k." depending on the first word of the next.
    Five captions of COCO 2014 differ under the default.

    Not guaranteed to be equal: control characters, soft hyphens, scripts other than Latin, Greek and Cyrillic,
    currency other than $, €, £, ¥ and ¢, mark-up, and sequences of signs that are no smiley.

    Args:
        text: One caption. White space of any kind separates words.
        following: The start of the next caption. Most begin with "A".

    Returns:
        The tokens with single spaces between them. A telephone number or mixed fraction with a space in it is one
        token: Java writes a no-break space there.

    Example:
        >>> tokenize("A man's dog, on a bike.")
        "a man 's dog on a bike"
    """
    text = text.replace("\xad", "")
    whole = f"{text}\n{following}\n"
    if _ACROSS_SPACE.search(whole):
        return " ".join(_tokens(whole, len(text)))
    return " ".join(filter(None, map(_word, text.split())))


@lru_cache(maxsize=2**17)  # captions repeat their words: COCO 2014 has 54,231 different ones in 6.5 million
def _word(word: str) -> str:
    return " ".join(_tokens(word, len(word)))


def _tokens(text: str, stop: int) -> list[str]:
    tokens = []
    start = 0
    while start < stop:
        end = max((match.end() for pattern in _PATTERNS if (match := pattern.match(text, start))), default=start)
        followed = _FOLLOWED.match(text, start)
        if followed and followed.end() >= end:
            end = followed.end(followed.lastindex or 0)
            tokens.append(text[start:end].lower())
            start = end
            continue
        token = text[start:end].lower()
        start = max(end, start + 1)
        if token in _REPLACED:
            tokens.append(_REPLACED[token])
        elif _CURLY.fullmatch(token):
            tokens.append(token.translate(_STRAIGHT))
        elif token.strip("."):
            tokens.append(token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\xa0").replace("&amp;", "&"))
    return [token for token in tokens if token not in _PUNCTUATION]
