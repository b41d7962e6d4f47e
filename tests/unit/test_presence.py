"""A concept is in a caption by one rule, for the filter of captions and for the matcher, in every language offered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.filters import languages
from gen.filters.captions import NO_CONCEPT, CaptionFilters
from gen.matching.matcher import Matcher
from synthclip_jax.config import ConfigError, default_config, load_config
from synthclip_jax.text.presence import LANGUAGES, REFUSED, SPACED, UNSPACED, Presence, normalise

SENTENCES = [
    ("en", "dog", "A dog runs along the windy beach."),
    ("en", "café", "People sit outside a cafe\u0301 at noon."),
    ("en", "women's shoes", "A pair of women\u2019s shoes on a shelf."),
    ("de", "Hund", "Ein Hund läuft am windigen Strand entlang."),
    ("de", "Apfel", "Auf dem Tisch liegt ein „Apfel“ aus Holz."),
    ("nl", "hond", "Een hond rent over het winderige strand."),
    ("es", "perro", "Un perro corre por la playa con mucho viento."),
    ("es", "gato negro", "¡Un gato negro duerme en el sofá!"),
    ("pt", "cachorro", "Um cachorro corre pela praia ventosa."),
    ("fr", "chien", "Un chien court le long de la plage venteuse."),
    ("fr", "arbre", "L\u2019arbre se dresse seul sur la colline."),
    ("fr", "eau", "Un verre d'eau fraîche est posé sur la table."),
    ("fr", "arc-en-ciel", "Un arc\u2010en\u2010ciel brille au-dessus du champ."),
    ("it", "albero", "L'albero cresce da solo sulla collina verde."),
    ("ca", "arbre", "L'arbre creix sol dalt del turó verd."),
    ("vi", "chó", "Một con chó chạy dọc bãi biển lộng gió."),
    ("vi", "chó", "Một con cho\u0301 chạy dọc bãi biển lộng gió."),
    ("id", "anjing", "Seekor anjing berlari di pantai yang berangin."),
    ("ms", "anjing", "Seekor anjing berlari di tepi pantai yang berangin."),
    ("fil", "aso", "Isang aso ang tumatakbo sa mahangin na dalampasigan."),
    ("zh", "猫", "一只猫睡在温暖的窗台上。"),
    ("zh", "自行车", "一辆自行车停在雨中的街道旁。"),
    ("zh", "红苹果", "桌上放着一个红苹果和一把刀。"),
    ("zh", "自行車", "女孩在公園裡騎自行車。"),
    ("zh", "T恤", "一个穿着白色Ｔ恤的男孩站在海边。"),
    ("zh", "iPhone", "木桌上放着一部iPhone和一杯咖啡。"),
    ("ja", "犬", "犬が風の強い浜辺を走っている。"),
    ("ja", "コーヒー", "駅前の小さなカフェで女性がコーヒーを飲んでいる。"),
    ("ja", "ガラス", "窓辺に青いｶﾞﾗｽの花瓶が置かれている。"),
    ("th", "สุนัข", "สุนัขวิ่งไปตามชายหาดที่มีลมแรง"),
    ("km", "ឆ្កែ", "ឆ្កែមួយកំពុងរត់លើឆ្នេរខ្សាច់។"),
    ("lo", "ໝາ", "ໝາແລ່ນຢູ່ຫາດຊາຍທີ່ມີລົມແຮງ"),
    ("my", "ခွေး", "ခွေးတစ်ကောင်သည် ကမ်းခြေတွင် ပြေးနေသည်။"),
]
ABSENT = [
    ("en", "cat", "A concatenated list of cats."),
    ("de", "Hund", "Eine Hundehütte steht im Garten."),
    ("fr", "arbre", "Un marbre blanc brille au soleil."),
    ("fr", "eau", "Un gâteau rond est posé sur la table."),
    ("it", "ala", "Una balalaica è appesa alla parete."),
    ("ja", "カフ", "駅前の小さなカフェで女性が本を読んでいる。"),  # a small letter belongs to the one before it
    ("th", "มา", "ผู้ชายขี่ม้าบนชายหาด"),  # another tone, another word
    ("zh", "Phone", "木桌上放着一部iPhone和一杯咖啡。"),
    ("zh", "狗", "一只猫睡在温暖的窗台上。"),
]


def found_by_the_matcher(text, concept, language, fold_case=False):
    return Matcher([normalise(concept)], fold_case, language)(normalise(text)) == [0]


@pytest.mark.parametrize(("language", "concept", "text"), SENTENCES)
def test_a_good_sentence_passes_all_filters_and_its_concept_is_found(language, concept, text):
    if language not in UNSPACED:
        pytest.importorskip("wordfreq")
    filters = CaptionFilters(("refusal", "concept", "length", "one_sentence", "language"), 3, 15, language=language)
    assert filters.reason(text, concept) is None
    assert found_by_the_matcher(text, concept, language)


@pytest.mark.parametrize(("language", "concept", "text"), ABSENT)
def test_what_only_looks_like_the_concept_is_no_concept_to_either(language, concept, text):
    assert CaptionFilters(("concept",), 3, 15, language=language).reason(text, concept) == NO_CONCEPT
    assert not found_by_the_matcher(text, concept, language, fold_case=True)


def test_every_language_offered_has_a_sentence_here_and_every_other_one_is_refused_by_the_config():
    assert {language for language, _, _ in SENTENCES} == set(LANGUAGES)
    wordfreq = pytest.importorskip("wordfreq")
    assert set(wordfreq.available_languages("small")) <= {*LANGUAGES, *REFUSED}
    for language in LANGUAGES:
        load_config("configs/quickstart.py", [f"gen.captions.language={language}"])
    for language in REFUSED:
        with pytest.raises(ConfigError, match=rf"gen\.captions\.language: given '{language}'.*nouns.*allowed: en, ca"):
            load_config("configs/quickstart.py", [f"gen.captions.language={language}"])
    with pytest.raises(ConfigError, match=r"gen\.captions\.language: given 'klingon', allowed: en, ca"):
        load_config("configs/quickstart.py", ["gen.captions.language=klingon"])
    assert default_config().gen.captions.language == "en"
    assert languages.languages() == sorted(LANGUAGES)


def test_sentences_of_scripts_without_spaces_are_in_their_language_and_in_no_other():
    for language, _, text in SENTENCES:
        if language in UNSPACED:
            others = [other for other in UNSPACED if other != language and languages.is_in(text, other)]
            assert others == (["ja"] if text == "女孩在公園裡騎自行車。" else [])  # could be a Japanese headline
    assert not languages.is_in("A dog on the beach.", "zh")
    assert not languages.is_in("A dog on the beach beside one 狗.", "zh")


def test_words_are_counted_where_there_are_no_spaces():
    assert Presence("zh").words("一只猫睡在温暖的窗台上。") == 6  # eleven characters
    assert Presence("zh").words("木桌上放着iPhone 15和一杯咖啡。") == 7
    assert Presence("th").words("สุนัขวิ่งไปตามชายหาดที่มีลมแรง") == 9
    assert Presence("fr").words("L'arbre est seul.") == 3


ANY = st.text(st.sampled_from("abA eé'’-\u2010.,!?«» \u00a0\n\t\u200b\u0301猫犬カェーガ゙ขมา้ ໝາកខ្ែខွေးﬁＡ"), max_size=12)


@given(ANY, ANY, st.sampled_from(LANGUAGES), st.booleans())
def test_filter_and_matcher_never_disagree(text, concept, language, fold_case):
    contained = Presence(language, fold_case).contains(text, concept)
    if normalise(concept).strip():
        assert contained == found_by_the_matcher(text, concept, language, fold_case)
    else:
        assert not contained


@given(st.lists(ANY, max_size=5), st.lists(ANY, max_size=8), st.sampled_from(LANGUAGES), st.booleans())
def test_a_bank_is_found_in_many_texts_as_each_concept_is_in_each(texts, concepts, language, fold_case):
    texts, concepts = list(map(normalise, texts)), [concept for concept in map(normalise, concepts) if concept.strip()]
    matches = Matcher(concepts, fold_case, language).many(texts)
    found = [values.tolist() for values in np.split(matches.values, matches.offsets[1:-1])] if texts else []
    contains = Presence(language, fold_case).contains
    assert found == [[i for i, concept in enumerate(concepts) if contains(text, concept)] for text in texts]


@given(ANY, st.sampled_from(SPACED + UNSPACED))
def test_a_text_of_words_contains_itself_and_what_is_normalised_stays_as_it_is(text, language):
    assert normalise(normalise(text)) == normalise(text)
    words = " ".join(word for word in normalise(text).split() if not set(word) & set(".,!?"))
    assert Presence(language).contains(text=f"x, {words}.", concept=words) == bool(words)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("cafe\u0301", "café"),
        ("pin\u0303ata", "piñata"),
        ("men\u2019s", "men's"),
        ("coffee\u200bpot", "coffeepot"),
        ("\ufeffteapot", "teapot"),
        ("soft\u00adball", "softball"),
        ("\ufb01sh", "fish"),
        ("jack-o\u2010lantern", "jack-o-lantern"),
        ("ice\u00a0cream", "ice cream"),
        ("Ｔシャツ", "Tシャツ"),
        ("👨\u200d👩\u200d👧 family", "👨\u200d👩\u200d👧 family"),
        ("❤\ufe0f", "❤"),
        ("\u202eabc\u202c", "abc"),
        ("plain ASCII  `'-", "plain ASCII  `'-"),
    ],
)
def test_what_looks_alike_is_alike(written, read):
    assert normalise(written) == read
