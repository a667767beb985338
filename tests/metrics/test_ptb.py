"""Captions against the output of PTBTokenizer of Stanford CoreNLP 3.4.1, with "A" as the next caption."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from vlkd_pl.metrics.ptb import tokenize, tokenize_all

JAVA_OUTPUT = [
    # plain words
    ("", ""),
    ("   ", ""),
    ('A man, a plan: "canal"; Panama!', "a man a plan canal panama"),
    ("ALL CAPS HERE.", "all caps here"),
    ("tab\there  twice ", "tab here twice"),
    ("the colour of the grey theatre", "the colour of the grey theatre"),
    ("Wow!! Really?! yes!no", "wow !! really ?! yes!no"),
    # contractions
    ("don't can't WON'T isn't", "do n't ca n't wo n't is n't"),
    ("it's he'll they've I'm you're she'd", "it 's he 'll they 've i 'm you 're she 'd"),
    ("the dogs' dog's 's", "the dogs dog 's 's"),
    ("he'd've shouldn't've", "he 'd 've should n't 've"),
    ("cannot gonna gotta wanna gimme lemme", "can not gon na got ta wan na gim me lem me"),
    ("cannot's gonnas cannot-do", "cannot 's gonnas cannot-do"),
    ("'Twas 'tis 'em 'til 'cause", "'t was 't is 'em 'til 'cause"),
    ("rock'n'roll, rock 'n' roll, fish 'n chips", "rock 'n' roll rock 'n' roll fish 'n chips"),
    ("y'all d'ye c'mon ma'am o'clock o'er", "y' all d'ye c'mon ma'am o'clock o'er"),
    (
        "O'Neil d'Angelo De'Andre N'Sync l'oreal hors d'oeuvres",
        "o'neil d'angelo de'andre n'sync l'oreal hors d'oeuvres",
    ),
    ("Hawai'i j'ai Dunkin' goin' ol'", "hawai'i j' ai dunkin' goin ol'"),
    ("the '90s '60 1970's 1970s 70's", "the '90s '60 1970 's 1970s 70 's"),
    # abbreviations
    ("Mr. and Mrs. Smith vs. Dr. No", "mr. and mrs. smith vs. dr. no"),
    ("on Main St. by the rd., etc.", "on main st. by the rd. etc."),
    ("the Inc. The man", "the inc. the man"),
    ("U.S.A. p.m. T.V.s a U.S.-made thing", "u.s.a. p.m. t.v.s a u.s.-made thing"),
    ("Ph.D. Ph. D.", "ph.d. ph. d"),
    ("see fig. 5, no. 7 and no. it", "see fig. 5 no. 7 and no it"),
    ("in Mass. a mass. of it", "in mass. a mass of it"),
    ("plan b. The end", "plan b the end"),
    ("plan b. Cars end", "plan b. cars end"),
    ("sofa.A man on top.it", "sofa.a man on top.it"),
    ("a bus., a car.; end", "a bus. a car. end"),
    ("10 Ave. and 5th Blvd. N.", "10 ave. and 5th blvd. n"),
    # hyphens and slashes
    ("a t-shirt, x-ray and c-3po - so - it -- well", "a t-shirt x-ray and c-3po so it well"),
    ("a well-worn red,blue-green top ----- end", "a well-worn red,blue-green top ----- end"),
    ("and/or w/ w/o b/w a/b/c/d", "and/or w / w/o b/w a/b/c / d"),
    ("kitchen/dining-room pick-up/drop", "kitchen/dining-room pick-up/drop"),
    ("anti- this, half-pipe- that", "anti- this half-pipe that"),
    ("a_b _c_ C++ c# F# a# g++", "a_b _ c _ c++ c# f# a # g + +"),
    # numbers
    ("1/2 cup 3 1/2 cups 1-1/2 cups ½ cup 1\\/2", "1/2 cup 3\xa01/2 cups 1-1/2 cups 1/2 cup 1\\/2"),
    ("1,000 1,000,000.50 1.2.3 .5 5. 10,000lbs", "1,000 1,000,000.50 1.2.3 .5 5 10,000 lbs"),
    ("3:30pm 12:45 6-8:30", "3:30 pm 12:45 6-8 :30"),
    ("20th 1st 1920s-style 2x4's 3'6\" 5'", "20th 1st 1920s-style 2x4 's 3 6 5"),
    ("-5 +5 5-5 1+1=2 50% #1 #5a", "-5 +5 5-5 1 +1 = 2 50 % # 1 # 5a"),
    ("$5.00 US$5 Gr$$d €5 £5 ¥5 50¢", "$ 5.00 us$ 5 gr $ $ d $ 5 # 5 ¥ 5 50 cents"),
    ("12/25/2010 9-11-2001 1/64-1930", "12/25/2010 9-11-2001 1/64-1930"),
    (
        "call (650) 555-1234 or 1-800-555-1234 or 22 333 4444",
        "call -lrb-650-rrb-\xa0555-1234 or 1-800-555-1234 or 22\xa0333\xa04444",
    ),
    ("350.org 60t.h", "350 org 60t.h"),
    # signs
    ("(hello) [sic] {foo}", "-lrb- hello -rrb- -lsb- sic -rsb- -lcb- foo -rcb-"),
    ("AT&T R&B M&Ms green&white &amp; A&amp;W &lt;3", "at&t r&b m&m s green & white & a&w < 3"),
    ("a * b ** ~ ^ | \\ = @ ## ??", "a * b ** ~ ^ | \\ = @ ## ??"),
    ("`quoted' ``this'' \"that\"", "quoted this that"),
    ("wait... what.... no.. . . .", "wait what no"),
    ("<b>bold</b> a < b > c >> d <br />", "<b> bold </b> a < b > c >> d <br\xa0/>"),
    (":) :-) ;-( =D :P ^_^ -_- (^_^) :a", ":-rrb- :--rrb- ;--lrb- =d :p ^_^ -_- -lrb-^_^-rrb- a"),
    # addresses and files
    ("http://www.example.com/a?b=c. www.cnn.com", "http://www.example.com/a?b=c www.cnn.com"),
    ("foo.com/bar. me@foo.com, @me #beach img_5.jpg 5.jpg", "foo.com/bar me@foo.com, @me #beach img_5 jpg 5.jpg"),
    # typography
    ("“hello” ‘hi’ it’s don’t dogs’ — – … « no »", "hello hi it 's do n't dogs no"),
    ("“‘hi’”, 5 m²²", "``` hi ''' 5 m ²²"),
    ("café naïve ñandú über-cool ÉCLAIR", "café naïve ñandú über-cool éclair"),
    ("a 😀 smile ❤ ☃ 90°F 2×4 ™", "a smile ❤ ☃ 90 ° f 2 × 4 ™"),
    ("привет мир 日本語", "привет мир 日本語"),
]


@pytest.mark.parametrize(("caption", "tokens"), JAVA_OUTPUT)
def test_rules(caption, tokens):
    assert tokenize(caption) == tokens


def test_last_letter_hangs_on_the_next_caption():
    assert tokenize("the letter K.", "The end") == tokenize("the letter K.", "A") == "the letter k"
    assert tokenize("the letter K.", "Two dogs") == tokenize("the letter K.", "") == "the letter k."
    assert tokenize("the U.S.", "The end") == tokenize("the U.S.", "Two dogs") == "the u.s."
    assert tokenize("it is no.", "5 dogs") == "it is no."
    assert tokenize("it is no.", "A dog") == "it is no"


def test_next_caption_gives_no_tokens():
    assert tokenize("call 555", "1234 now") == "call 555"
    assert tokenize("<a", "b>") == "< a"
    assert tokenize("", "A dog") == ""


@pytest.mark.skipif(not shutil.which("java"), reason="needs java on the path")
def test_equals_java_on_odd_captions_of_coco():
    pycocoevalcap = pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with zipfile.ZipFile(Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar") as jar:
        rows = json.loads(jar.read("coco/annotations/captions_val2014.json"))["annotations"]
    captions = [row["caption"].replace("\n", " ") for row in rows]
    odd = [caption for caption in captions if re.search(r"[^A-Za-z ]", caption.strip().removesuffix("."))]
    odder = [caption for caption in odd if re.search(r"[^A-Za-z ,\-]", caption.strip().removesuffix("."))]
    chosen = odd[::80] + odder[::10]
    assert len(chosen) > 600
    java = PTBTokenizer().tokenize({index: [{"caption": caption}] for index, caption in enumerate(chosen)})
    for index, (caption, tokens) in enumerate(zip(chosen, tokenize_all(chosen), strict=True)):
        assert [tokens] == java[index], caption
