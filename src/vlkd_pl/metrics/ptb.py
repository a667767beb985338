"""Penn Treebank tokens of captions, as the official evaluation of COCO captions splits them, without Java."""

from __future__ import annotations

import re
from functools import lru_cache

# A full stop after these belongs to the abbreviation: in any case, unless in capitals, only capitalised, before a number.
_ABBREVIATIONS = (
    "adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft gen gov govs hon"
    " insp invt jos lieut lt maj messrs mlle mme mr mrs ms msgr mt natl pfc ph pres prof profs pvt rep reps rev sen"
    " sens sfc sgt spc st ste supt treas vs wm"
)
_CLOSING = (
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga"
    " inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn ph.d plc rd rt"
    " sep sept seq sq sr sys tel tenn thu tue tues univ va vt wed wis wisc wyo"
)
_COMPANIES = "mfg mtg ppte ppty pte ptes pty ptys"
_STATES = "ark az del ill la mass miss ore pa tex wash"
_NUMBERED = "art ca fig figs no nos op pp prop"
# After these words a letter's full stop ends the sentence before them: "plan b. The".
_STARTERS = (
    "a about according after an as at but earlier he her here however if in it last many more now once one other our"
    " she since so some such that the their then there these they this we what when while yet you"
)


def _any(words: str) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(words.split(), reverse=True)))})"


_NO_LETTER = "²³¹¼-¾⁰-₟⅐-↋①-⓿"
_LETTER = rf"[^\W\d_{_NO_LETTER}]"
_ALNUM = rf"[^\W_{_NO_LETTER}]"
_THING = rf"(?:[dlo]['’`]{_ALNUM})?{_ALNUM}+"
_SLASHED = r"[a-z0-9]+(?:-[a-z]+){0,2}"
_INNER_STOP = r"(?:\.(?=[,;:]))?"
_PATH = r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"
_ANY_CASE = (
    # words, with an inner full stop, hyphens, apostrophes, slashes
    rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*{_INNER_STOP}",
    rf"{_THING}(?:[_\-‐‑]{_THING})*{_INNER_STOP}",
    rf"{_ALNUM}(?:{_ALNUM}|[.,])*(?:-(?:[a-z](?:\.[a-z])+\.|{_ALNUM}+))+{_INNER_STOP}",
    r"(?-i:[A-Za-z]+[aeiouyAEIOUY]['’`][aeiouA-Z])[a-z]*",
    rf"{_SLASHED}(?:\\?/{_SLASHED}){{1,2}}",
    r"dunkin['’]|somethin['’]|ol['’]|c'mon|e['’]er|s['’]mores|li['’]l|nat['’]l|ev['’]ry|nor['’]easter|c['’]est|cap['’]n|o['’]o",
    # contractions
    r"'(?:s|d|m|re|ve|ll)(?![a-z])|’(?:s|d|m|re|ve|ll)|n['’`]t",
    r"['’](?:em|till?|cause|n['’]|[2-9]0s|\d\d(?!\S))|'t(?=is|was)|'n(?!\S)|’n",
    rf"[djl]['’]|y['’](?={_LETTER})",
    # acronyms and abbreviations
    r"[a-z](?:\.[a-z])+\.?",
    rf"{_any(_ABBREVIATIONS + ' ' + _CLOSING)}\.",
    rf"{_any(_NUMBERED)}\.(?=\s?\d)",
    # numbers, fractions, telephone numbers
    r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
    r"\d{1,2}[/-]\d{1,2}[/-]\d{2,4}",
    r"(?:\d{1,4}[- ])?\d{1,4}\\?/\d{1,4}",
    r"(?:\(\d{2,3}\) ?|(?:\+?\+?\d{2,4}[- ])?\d{2,4}[- ]|\+?\+?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}",
    # the web
    r"</?[a-z][\w:.-]*(?:[ \t]+[\w:.-]+(?:[ \t]*=[ \t]*(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'<>]+))?)*[ \t]*/?>|<[!?][a-z-][^>\n]*>",
    r"&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash|#\d+);",
    r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
    rf"www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-z]{{2,4}}{_PATH}",
    rf"(?-i:[a-z#%&*+~][a-z#%&*+~]*\.(?:[a-z#%&*+~]+\.)*(?:com|net|org|edu)){_PATH}",
    r"<?[a-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?",
    r"@[a-z_][a-z0-9_]*|#[a-z]+",
    # signs
    r"(?:anti|pro)-|c\+\+|[cf]#|[!?]+|\*+|_+|-+|\.{3,}|''?|``?|#+|@+|<<|>>|\\\*",
    r"[\^x=~<>'-]_[\^x=~<>'-]|\([\^x=~<>'-][_.-]?[\^x=~<>'-]\)|[‘’“”‛]{1,2}|[²³¹⁰-₎]+",
    r"[!-/:-@\[-`{-~¡-©«¬®-´¶-¿×÷‖‗‚„†-•‰-‸‹-›※-⁂⁄–-—“”‘’…⁰-₎₤€℀-⅏⅓-⅞←-⯿、。！-／：-･￠￡￥￦]",
)
_AS_WRITTEN = (
    rf"(?:{_any(_COMPANIES + ' ' + _COMPANIES.title())}|{_any(_STATES.title() + ' ' + _STATES.upper())})\.",
    rf"[A-Za-z]\.(?!\s+{_any(_STARTERS.title() + ' ' + _STARTERS.upper())}\s)",
    rf"[A-Z]+(?:(?:[&+]|&amp;)[A-Z]+)+{_INNER_STOP}",
    rf"[A-HJ-XZn]['’`]{_LETTER}{{2,}}",
    r"[A-Z]+\$",
    rf"[<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]](?!{_ALNUM})",
)
_PATTERNS = [re.compile(p, re.IGNORECASE) for p in _ANY_CASE] + [re.compile(p) for p in _AS_WRITTEN]
_CURLY = re.compile(r"’(?:[sdm]|re|ve|ll)|n’t|[‘’“”‛]+")
_QUOTES = {ord("’"): "'", ord("‘"): "`", ord("‛"): "`", ord("“"): "``", ord("”"): "''"}
# The lexer counts what has to follow a word towards its length: "do" before "n't" beats the longer "don".
_BEFORE = re.compile(rf"({_any(_CLOSING)}\.)-?[a-z0-9]|([a-z]*[a-mo-z])n['’`]t|({_LETTER}+)['’](?:[sdm]|re|ve|ll)", re.IGNORECASE)

_PUNCTUATION = frozenset("' '' ` `` . ? ! , : - -- --- ---- ... .... ..... ...... ; \" “ ” ‘ ’ « » ‹ › – — … &quot; &apos; &nbsp; &mdash; &ndash;".split())
_WRITTEN = {
    **{"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "€": "$", "¤": "$", "£": "#", "¢": "cents"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me"},
    **{"lemme": "lem me"},
}
# Where a word's tokens may depend on what follows the white space after it.
_SPANNING = re.compile(r"\d\)?\s\(?\d|<[a-zA-Z!?/]|(?<![A-Za-z]{2})[A-Za-z]\.\s|\.\s\d")


def tokenize(text: str, following: str = "A") -> str:
    """The caption as pycocoevalcap's PTBTokenizer gives it: lower-case PTB tokens without punctuation."""
    text = text.replace("\xad", "")
    whole = f"{text}\n{following}\n"
    if _SPANNING.search(whole):
        return " ".join(_tokens(whole, len(text)))
    return " ".join(filter(None, map(_word, text.split())))


@lru_cache(maxsize=2**17)
def _word(word: str) -> str:
    return " ".join(_tokens(word, len(word)))


def _tokens(text: str, stop: int) -> list[str]:
    tokens, start = [], 0
    while start < stop:
        end = max((match.end() for pattern in _PATTERNS if (match := pattern.match(text, start))), default=start)
        plain = (match := _BEFORE.match(text, start)) is not None and match.end() >= end
        if match and plain:
            end = match.end(match.lastindex or 0)
        token = text[start:end].lower()
        if not plain and token in _WRITTEN:
            tokens.append(_WRITTEN[token])
        elif _CURLY.fullmatch(token):
            tokens.append(token.translate(_QUOTES))
        elif token:
            tokens.append(token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", "\xa0").replace("&amp;", "&"))
        start = max(end, start + 1)
    return [token for token in tokens if token not in _PUNCTUATION]
