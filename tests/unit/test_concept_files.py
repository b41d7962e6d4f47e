"""Lists of concepts as people have them: of each form what is read, what is left out and said, or the line to mend."""

import json

import pytest

from gen.bank.files import is_file_name, read_file
from gen.bank.tables import BankError
from synthclip_jax.errors import UserError

DOG_OWL = ["dog", "owl"]
READ = {  # name: (file's name, content, entries, a part of what is said; empty: nothing is said)
    "plain": ("a.txt", "dog\nowl\n", DOG_OWL, ""),
    "no end of the last line": ("a.txt", "dog\nowl", DOG_OWL, ""),
    "Windows, with a BOM": ("a.txt", b"\xef\xbb\xbfdog\r\nowl\r\n", DOG_OWL, ""),
    "a BOM in the middle, as cat leaves it": ("a.txt", "dog\n\ufeffowl\n", DOG_OWL, ""),
    "suffix in capitals": ("A.TXT", "dog\nowl\n", DOG_OWL, ""),
    "blank lines and blanks": ("a.txt", "\n  dog \n\n\t\nowl\u00a0\n\n", DOG_OWL, ""),
    "blanks inside": ("a.txt", "golden   retriever\nice\u00a0cream\n", ["golden retriever", "ice cream"], ""),
    "underscores": ("a.txt", "golden_retriever\napple_pie\n", ["golden retriever", "apple pie"], ""),
    "decomposed accents": ("a.txt", "cafe\u0301\npin\u0303ata\n", ["café", "piñata"], ""),
    "zero width and soft hyphen": ("a.txt", "coffee\u200bpot\nsoft\u00adball\n", ["coffeepot", "softball"], ""),
    "apostrophes and hyphens": ("a.txt", "men\u2019s hat\nT\u2010shirt\n", ["men's hat", "T-shirt"], ""),
    "ligature": ("a.txt", "\ufb01sh\n", ["fish"], ""),
    "line separator is no line end": ("a.txt", "dog\u2028house\nowl\n", ["dog house", "owl"], ""),
    "form feed is no line end": ("a.txt", "dog\n\x0cowl\n", DOG_OWL, ""),
    "hash comments": ("a.txt", "# animals\ndog\n#owl2\nowl\n", DOG_OWL, "2 lines left out: comment (line 1: # animals"),
    "slash comments": ("a.txt", "// birds\nowl\n", ["owl"], "1 line left out: comment"),
    "semicolon and percent comments": ("a.txt", "; x\n% y\n-- z\nowl\n", ["owl"], "3 lines left out: comment"),
    "comment behind": ("a.txt", "dog  # small\nowl // at night\n", DOG_OWL, "comment taken off 2 entries"),
    "C sharp is no comment": ("a.txt", "C# book\nR&D\n", ["C# book", "R&D"], ""),
    "double quotes": ("a.txt", '"dog"\n"owl"\n', DOG_OWL, "quotation marks taken off 2 entries"),
    "single and curly quotes": ("a.txt", "'dog'\n\u201cowl\u201d\n", DOG_OWL, "quotation marks taken off 2 entries"),
    "lines of Python": ("a.txt", "'dog',\n'owl',\n", DOG_OWL, "quotation marks taken off 2 entries"),
    "an apostrophe at the start": ("a.txt", "'hood ornament\nowl\n", ["'hood ornament", "owl"], ""),
    "a comma at the end": ("a.txt", "dog,\nowl,\n", DOG_OWL, "comma at the end taken off 2 entries"),
    "a list of Python": ("a.txt", "['dog', 'owl']\n", DOG_OWL, ""),
    "an assignment of Python": ("a.txt", "classes = [\n  'dog',\n  'owl',  # bird\n]\n", DOG_OWL, ""),
    "a tuple of Python": ("a.txt", "('dog', \"owl\")", DOG_OWL, ""),
    "a list of JSON in a text file": ("a.txt", '["dog", "owl"]', DOG_OWL, ""),
    "ImageNet's dictionary in Python": (
        "imagenet1000_clsidx_to_labels.txt",
        "{0: 'tench, Tinca tinca',\n 1: 'goldfish, Carassius auratus',\n 2: \"crane\"}",
        ["tench", "goldfish", "crane"],
        "synonym behind a comma taken off 2 entries",
    ),
    "numbers and points": ("a.txt", "1. dog\n2. owl\n", DOG_OWL, "numbering taken off 2 entries"),
    "numbers and brackets": ("a.txt", "1) dog\n2) owl\n", DOG_OWL, "numbering"),
    "numbers in brackets": ("a.txt", "(1) dog\n(2) owl\n", DOG_OWL, "numbering"),
    "numbers and colons": ("a.txt", "0: dog\n1: owl\n", DOG_OWL, "numbering"),
    "numbers and blanks": ("a.txt", "0 dog\n1 owl\n", DOG_OWL, "numbering"),
    "numbers and dashes": ("a.txt", "1 - dog\n2 - owl\n", DOG_OWL, "numbering"),
    "numbers behind": ("a.txt", "dog 0\nowl 1\n", DOG_OWL, "numbers taken off 2 entries"),
    "CUB-200": ("classes.txt", "1 001.Laysan_Albatross\n2 002.Crow\n", ["Laysan Albatross", "Crow"], "numbering"),
    "Caltech-256": ("a.txt", "001.ak47\n002.american-flag\n", ["ak47", "american-flag"], "numbering"),
    "numbers that are concepts": ("a.txt", "7 dwarfs\n101 dalmatians\n", ["7 dwarfs", "101 dalmatians"], ""),
    "numbers alone": ("a.txt", "7\n42\n", ["7", "42"], ""),
    "bullets": ("a.txt", "- dog\n- owl\n", DOG_OWL, "bullets taken off 2 entries"),
    "bullets under a heading": ("a.txt", "Animals:\n* dog\n* owl\n", DOG_OWL, "1 line left out: heading"),
    "dots as bullets": ("a.txt", "\u2022 dog\n\u2022 owl\n", DOG_OWL, "bullets"),
    "YAML": ("data.names", "names:\n- dog\n- owl\n", DOG_OWL, "heading"),
    "darknet": ("coco.names", "dog\nowl\n", DOG_OWL, ""),
    "ImageNet's synset_words.txt": (
        "synset_words.txt",
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
        ["tench", "goldfish"],
        "ids of WordNet taken off 2 entries",
    ),
    "tiny ImageNet's words.txt": (
        "words.txt",
        "n00001740\tentity\nn00001930\tphysical entity\n",
        ["entity", "physical entity"],
        "column 2 of 2 is read",
    ),
    "map_clsloc.txt": (
        "a.txt",
        "n02119789 1 kit_fox\nn02100735 2 English_setter\n",
        ["kit fox", "English setter"],
        "ids",
    ),
    "synonyms without ids": (
        "imagenet_synsets.txt",
        "tench, Tinca tinca\ncrane\nhouse finch, linnet\n",
        ["tench", "crane", "house finch"],
        "synonym behind a comma taken off 2 entries (line 1: Tinca tinca, line 3: linnet)",
    ),
    "explanations": ("a.txt", "crane (bird)\nowl\n", ["crane", "owl"], "explanation in parentheses taken off 1 entry"),
    "Places365": ("a.txt", "/a/airfield 0\n/a/arena/hockey 1\n", ["airfield", "hockey arena"], "initials"),
    "one line with commas": ("a.txt", "dog, owl, red panda\n", ["dog", "owl", "red panda"], "read as 3 entries"),
    "one line with semicolons": ("a.txt", "dog; owl; car\n", ["dog", "owl", "car"], "read as 3 entries"),
    "one line with two names": ("a.txt", "dog, owl\n", DOG_OWL, "read as 2 entries"),
    "a table of Markdown": ("a.txt", "| id | name |\n|----|----|\n| 0 | dog |\n| 1 | owl |\n", DOG_OWL, "(name) of 4"),
    "columns by blanks": ("a.txt", "dog      12\nowl       3\n", DOG_OWL, "column 1 of 2 is read"),
    "PASCAL VOC": ("a.txt", "dog 1\nowl -1\n", DOG_OWL, "column 1 of 2 is read"),
    "names that end in numbers": ("a.txt", "Acura RL 2012\nFiat 500 2012\n", ["Acura RL 2012", "Fiat 500 2012"], ""),
    "names with numbers of YAML": ("a.txt", "dog: 0\nowl: 1\n", DOG_OWL, "numbers taken off 2 entries"),
    "LVIS": ("a.json", '[{"name": "aerosol_can", "synonyms": ["x"]}]', ["aerosol can"], "'name' of each"),
    "thousands": ("a.txt", "1,000 lakes\nowl\n", ["1,000 lakes", "owl"], ""),
    "entities of HTML": ("a.txt", "salt &amp; pepper\nowl\n", ["salt & pepper", "owl"], ""),
    "a header in one column": (
        "a.txt",
        "class_name\ndog\nowl\n",
        DOG_OWL,
        "1 line left out: header (line 1: class_name)",
    ),
    "rules between lines": ("a.txt", "dog\n=====\nowl\n", DOG_OWL, "1 line left out: no letter or digit"),
    "emoji": (
        "a.txt",
        "🐶\nowl\n👨\u200d👩\u200d👧 family\n",
        ["owl", "👨\u200d👩\u200d👧 family"],
        "no letter or digit",
    ),
    "a whole page": ("a.txt", "owl\n" + "word " * 100 + "\n", ["owl"], "more than 200 characters"),
    "what no decoder could read": ("a.txt", "owl\nd\ufffdg\n", ["owl"], "could not be decoded"),
    "a bell": ("a.txt", "owl\nd\x07og\n", ["owl"], "a control character"),
    "addresses and images": (
        "a.txt",
        "owl\nhttps://x.org/a\nimages/1.jpg\n",
        ["owl"],
        "the name of an image file",
    ),
    "columns with a header": ("a.txt", "id\tlabel\n0\tdog\n1\towl\n", DOG_OWL, "column 2 (label) of 2 is read"),
    "TSV": ("a.tsv", "label\tcount\ndog\t12\nowl\t3\n", DOG_OWL, "column 1 (label) of 2 is read"),
    "CSV of one column": ("a.csv", "name\ndog\nowl\n", DOG_OWL, "header"),
    "CSV without a header": ("a.csv", "0,dog\n1,owl\n", DOG_OWL, "column 2 of 2 is read"),
    "OpenImages": (
        "class-descriptions.csv",
        "/m/011k07,Tortoise\n/m/011q46kg,Container\n",
        ["Tortoise", "Container"],
        "2",
    ),
    "OpenImages V7": (
        "a.csv",
        "LabelName,DisplayName\n/m/011k07,Tortoise\n/m/0k4j,Car\n",
        ["Tortoise", "Car"],
        "header",
    ),
    "CSV with quotes": (
        "a.csv",
        'id,name\n0,"red panda"\n1,"owl, barn"\n',
        ["red panda", "owl"],
        "synonym behind a comma",
    ),
    "CSV of Excel in Europe": ("a.csv", "id;name\n0;dog\n1;owl\n", DOG_OWL, "column 2 (name) of 2 is read"),
    "several columns of text": (
        "a.csv",
        "name,scientific\ndog,Canis lupus\nowl,Strigiformes\n",
        DOG_OWL,
        "column 1 (name)",
    ),
    "CSV lines in a text file": ("a.txt", "0,dog\n1,owl\n", DOG_OWL, "2"),
    "JSON": ("a.json", '["dog", "owl"]', DOG_OWL, ""),
    "JSON with a BOM": ("a.JSON", b'\xef\xbb\xbf["dog", "owl"]', DOG_OWL, ""),
    "imagenet_class_index.json": (
        "imagenet_class_index.json",
        '{"0": ["n01440764", "tench"], "1": ["n01443537", "great_white_shark"]}',
        ["tench", "great white shark"],
        "column 2 of 2 is read",
    ),
    "ten ids in the order of texts": (
        "a.json",
        json.dumps({str(index): f"name {index}" for index in (0, 1, 10, 11, 2, 3)}),
        ["name 0", "name 1", "name 2", "name 3", "name 10", "name 11"],
        "",
    ),
    "synsets with names": ("a.json", '{"n02084071": "dog", "n01503061": "bird"}', ["dog", "bird"], ""),
    "class_to_idx": ("a.json", '{"owl": 1, "dog": 0}', DOG_OWL, "names with their numbers"),
    "COCO": (
        "a.json",
        '{"images": [], "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "owl"}]}',
        DOG_OWL,
        "name",
    ),
    "objects": ("a.json", '[{"label": "dog"}, {"label": "owl"}]', DOG_OWL, "'label' of each object is read"),
    "pairs": ("a.json", '[["n1", "x"], ["n2", "y"]]', None, "2 columns ('n1', 'x')"),
    "pairs of numbers and names": ("a.json", '[[0, "dog"], [1, "owl"]]', DOG_OWL, "column 2 of 2 is read"),
    "JSON lines of texts": ("a.jsonl", '"dog"\n"owl"\n', DOG_OWL, ""),
    "JSON lines of objects": ("a.jsonl", '{"name": "dog"}\n{"name": "owl"}\n', DOG_OWL, "name"),
    "hostile names stay what they are": ("a.json", '["<b>dog</b>", "$(x) owl"]', ["<b>dog</b>", "$(x) owl"], ""),
}
REFUSED = {
    "Latin-1": ("a.txt", b"caf\xe9\n", r"line 1: not UTF-8"),
    "UTF-16": ("a.txt", "dog\n".encode("utf-16"), "UTF-16, not UTF-8"),
    "a NUL": ("a.txt", b"dog\0\nowl\n", "line 1: a NUL"),
    "old Macs": ("a.txt", "dog\rowl\rcar", "line 1: has line ends of old Macs"),
    "numbering in some lines": ("a.txt", "1. dog\nowl\n3. car\n", r"line 2: 'owl' has no numbering"),
    "ids in some lines": ("a.txt", "n02084071 dog\nowl\n", r"line 2: 'owl' has no ids of WordNet"),
    "ids alone": ("wnids.txt", "n02084071\nn01503061\n", "ids of WordNet without names"),
    "bullets in some lines": ("a.txt", "- dog\nowl\n", r"line 2: 'owl' has no bullet"),
    "a quotation mark in the middle": ("a.txt", 'the "big" dog\n', "line 1: .* has a quotation mark"),
    "an open quotation mark": ("a.txt", '"dog\nowl\n', "line 1: .* has a quotation mark"),
    "emphasis of Markdown": ("a.txt", "- **dog**\n- *owl*\n", "line 1: .* is markup or code"),
    "a link of Markdown": ("a.txt", "[cat](x)\nowl\n", "line 1: .* is markup or code"),
    "protobuf": ("a.txt", "item {\n  name: 'dog'\n}\n", "line 1: .* is markup or code"),
    "HTML in a line": ("a.txt", "dog<br>\nowl<br>\n", "line 1: .* is markup or code"),
    "HTML": ("a.txt", "<li>dog</li>\n", "line 1: .* is markup"),
    "columns in some lines": ("a.txt", "dog\t1\nowl\t2\ncar\n", "line 3: 'car' has 1 columns, other lines 2"),
    "columns of text": ("a.tsv", "dog\tHund\nowl\tEule\n", r"line 1: 2 columns \('dog', 'Hund'\)"),
    "numbers alone in columns": ("a.csv", "1,2\n3,4\n", "line 1: columns of numbers and ids alone"),
    "a row of another width": ("a.csv", "id,name\n0,dog\n1,owl,bird\n", "line 3: 3 columns, in the lines before 2"),
    "an open quote in CSV": ("a.csv", 'id,name\n0,"dog\n1,owl\n', "not valid CSV"),
    "a hole": ("a.json", '["dog", "", "owl"]', "entry 1 is empty"),
    "a number": ("a.json", '["dog", 7]', "entry 1 is 7, allowed: text"),
    "lists in some entries": ("a.json", '["dog", ["owl"]]', "entry 1 is "),
    "one text": ("a.json", '"dog"', "holds one str, allowed: a list"),
    "frequencies": ("a.json", '{"dog": 120, "owl": 7}', "holds one dict, allowed: a list"),
    "objects without names": ("a.json", '[{"a": "dog"}]', "objects without a name"),
    "no JSON": ("a.json", '["dog",]', "not valid JSON, line 1"),
    "JSON without end": ("a.json", "[" * 100_000, "a.json: not "),
    "a set of Python": ("a.txt", "{'dog', 'owl'}", "a set of Python has no order"),
    "code": ("a.txt", "[open('x'), __import__('os')]", "line 1: begins like a list"),
    "brackets without end": ("a.txt", "[" * 50_000 + "]" * 50_000, "begins like a list"),
    "a number of a million digits": ("a.json", "[" + "9" * 1_000_000 + "]", "a.json: not JSON"),
    "half a surrogate pair": ("a.json", '["\\ud800"]', "entry 0 holds half a surrogate pair"),
    "another suffix": ("a.yaml", "- dog\n", r"the suffix is \.yaml, allowed: \.txt"),
    "no suffix": ("list", "dog\n", "the suffix is missing, allowed"),
}


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("form", READ)
def test_what_is_read_from_each_form(form, tmp_path):
    name, content, entries, said = READ[form]
    path = write(tmp_path, name, content)
    if entries is None:
        with pytest.raises(BankError) as error:
            read_file(path, "gen.concepts.lists")
        assert said in str(error.value)
        return
    file = read_file(path, "gen.concepts.lists")
    assert file.texts == entries
    lines = "\n".join([*file.notes, *file.left_out.lines()])
    assert said in lines
    assert bool(lines) == bool(said)


@pytest.mark.parametrize("form", REFUSED)
def test_what_could_be_read_in_two_ways_is_named_with_its_line(form, tmp_path):
    name, content, message = REFUSED[form]
    with pytest.raises(BankError, match=message) as error:
        read_file(write(tmp_path, name, content), "gen.concepts.lists")
    assert isinstance(error.value, UserError)
    assert len(str(error.value)) < 700


def test_there_are_more_than_sixty_forms():
    assert len(READ) >= 60
    assert len(READ) + len(REFUSED) >= 100


def test_folders_missing_files_and_pipes_are_named(tmp_path):
    with pytest.raises(BankError, match=r"gen\.concepts\.lists: .*no such file"):
        read_file(str(tmp_path / "none.txt"), "gen.concepts.lists")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BankError, match="not a regular file"):
        read_file(str(tmp_path / "folder.txt"), "gen.concepts.lists")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BankError, match=r"gen\.concepts\.lists: .*folder: a folder\. Name the files in it"):
        read_file(str(tmp_path / "folder"), "gen.concepts.lists")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    with pytest.raises(BankError, match="not a regular file"):
        read_file(str(tmp_path / "device.txt"), "gen.concepts.lists")


def test_names_behind_commas_are_terms_of_a_block_list(tmp_path):
    path = write(tmp_path, "a.txt", "gun, pistol\nknife\n")
    assert read_file(path, "gen.concepts.block_list", synonyms=True).texts == ["gun", "pistol", "knife"]


def test_what_is_a_file_and_what_is_a_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "badwords").write_text("gun\n")
    assert all(map(is_file_name, ("a.txt", "lists/a", "b.TXT", "x.md", "badwords", "~/a.txt", r"c:\a")))
    assert not any(map(is_file_name, ("gun", "hot dog", "St. Louis", "U.S.", "T-shirt")))
