"""Files as they come: each case is a file and what has to be read from it, or the rule that it breaks.

Loaded by the fixture `bad_files`. A case's content is bytes, or a function that makes something else at a path.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PLAIN = b"id,city\n1,Paris\n2,Rome\n"
Columns = list[list[str | None]]


@dataclass(frozen=True)
class Case:
    """file: its name; expected: (header, columns), or the rule it breaks; notes: the rules by which it is cut."""

    file: str
    content: bytes | Callable[[Path], object]
    expected: tuple[tuple[str, ...], Columns] | str
    notes: tuple[str, ...] = ()


def parquet(columns, **options):
    sink = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), sink, **options)
    return sink.getvalue()


def zstd(data):
    return pa.Codec("zstd").compress(data).to_pybytes()


def zipped(names):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return sink.getvalue()


def sqlite(path):
    connection = sqlite3.connect(path)
    connection.execute("create table t(a)")
    connection.close()


def listening(path):
    """A socket file, made from within its folder since such paths must be short."""
    there = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(there)


def link_to(target):
    return lambda path: path.symlink_to(target)


def linked_pair(path):
    other = path.with_name("other end of " + path.name)
    path.symlink_to(other)
    other.symlink_to(path)


def folder_with(name, content):
    def make(path):
        path.mkdir()
        (path / name).write_bytes(content)

    return make


READ = (("id", "city"), [["1", "2"], ["Paris", "Rome"]])
ONE = (("a", "b"), [["1"], ["2"]])
TWO = (("a", "b"), [["1", "3"], ["2", "4"]])
ACCENTS = (("n°", "ville"), [["1"], ["Orléans"]])
CYRILLIC = "Город,Страна\nМосква,Россия\nПариж,Франция\nБерлин,Германия\nСофия,Болгария\n"
GREEK = "Πόλη,Χώρα\nΑθήνα,Ελλάδα\nΘεσσαλονίκη,Ελλάδα\nΛευκωσία,Κύπρος\n"
JAPANESE = "都市,国\n東京,日本です\n大阪,日本です\nこんにちは,さようなら\nカタカナ,ひらがな\n"
CHINESE = "城市,国家\n北京,中华人民共和国\n上海,中华人民共和国\n广州是一个城市,我们的国家\n"
GOOD_PARQUET = parquet({"n": [1, None], "s": ["u", "v"]})
PARQUET_READ = (("n", "s"), [["1", None], ["u", "v"]])


def rows_of(text):
    header, *rows = [line.split(",") for line in text.splitlines()]
    return tuple(header), [list(column) for column in zip(*rows, strict=True)]


def quoted(rows, delimiter=",", quote='"'):
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) + "\n" for row in rows).encode()


def backslash_rows():
    lines = ['"name","said"', '"Ann \\"A\\" Lee","a, b"', '"back\\\\slash","say \\"x, y\\""', '"two\nlines","z"']
    expected = ('Ann "A" Lee', "back\\slash", "two\nlines"), ("a, b", 'say "x, y"', "z")
    return "\n".join(lines).encode(), (("name", "said"), [list(one) for one in expected])


BACKSLASH, BACKSLASH_READ = backslash_rows()
WIDE = ",".join(f"c{i}" for i in range(2_100)).encode() + b"\n" + b",".join(b"%d" % i for i in range(2_100)) + b"\n"
WIDE_READ = (tuple(f"c{i}" for i in range(2_000)), [[str(i)] for i in range(2_000)])
SWALLOW = b'a,b\n1,x\n2,"y\n' + b"".join(b"%d,z\n" % i for i in range(3, 60))
SWALLOW_READ = (("a", "b"), [[str(i) for i in range(1, 60)], ["x", "y", *["z"] * 57]])
# The stray quote stands behind the piece of text from which the dialect is told.
LATE = b"a,b\n" + b"".join(b'%d,"x, y"\n' % i for i in range(9_000)) + b'9000,"z\n' + b"9001,w\n" * 20
LATE_READ = (("a", "b"), [[*map(str, range(9_001)), *["9001"] * 20], [*["x, y"] * 9_000, "z", *["w"] * 20]])

PREAMBLE = ("preamble",)
TABLE = b"id,name,city,email\n1,Ann,Paris,x@y\n2,Bo,Rome,u@v\n"
TABLE_READ = (("id", "name", "city", "email"), [["1", "2"], ["Ann", "Bo"], ["Paris", "Rome"], ["x@y", "u@v"]])

CASES = {
    # --- line ends and rows
    "LF": Case("lf.csv", PLAIN, READ),
    "CR LF": Case("crlf.csv", PLAIN.replace(b"\n", b"\r\n"), READ),
    "CR": Case("cr.csv", PLAIN.replace(b"\n", b"\r"), READ),
    "mixed line ends": Case("mixed.csv", b"id,city\r\n1,Paris\r2,Rome\n", READ),
    "no last line end": Case("nolast.csv", PLAIN[:-1], READ),
    "blank lines": Case("blank.csv", b"\n\r\nid,city\n\n1,Paris\n\n\n2,Rome\n\n", READ),
    "lines of blanks": Case("blanks.csv", b" \t\nid,city\n   \n1,Paris\n\t\n2,Rome\n", READ),
    "form feeds": Case("ff.csv", b"id,city\n\x0c\n1,Paris\n\x0b\n2,Rome\n\x0c", READ),
    "Ctrl-Z at the end": Case("ctrlz.csv", PLAIN + b"\x1a", READ),
    "a form feed in a cell": Case("ffcell.csv", b"a,b\n1\x0cx,2\n", (("a", "b"), [["1\x0cx"], ["2"]])),
    "other line separators": Case("ls.csv", "a,b\n1\u2028x,2\x85y\n".encode(), (("a", "b"), [["1\u2028x"], ["2\x85y"]])),
    "short rows": Case("short.csv", b"a,b,c\n1,2,3\n4\n5,6\n7,8,9\n",
                       (("a", "b", "c"), [["1", "4", "5", "7"], ["2", None, "6", "8"], ["3", None, None, "9"]])),
    "long rows": Case("long.csv", b"a,b\n1,2\n3,4,5,6\n", TWO, ("cells-dropped",)),
    "long rows of blank cells": Case("long2.csv", b"a,b\n1,2\n3,4,, \n", TWO),
    "a row of delimiters": Case("commas.csv", b"a,b\n1,2\n,\n", (("a", "b"), [["1", ""], ["2", ""]])),
    "header only": Case("header.csv", b"a,b\n", (("a", "b"), [[], []])),
    "header without line end": Case("header2.csv", b"a,b", (("a", "b"), [[], []])),
    "a Markdown rule": Case("rule.csv", b"a,b,c\n--- , :--:,\n1,2,3\n", (("a", "b", "c"), [["1"], ["2"], ["3"]])),
    "a Markdown rule alone": Case("rule2.csv", b"a,b\n---,---\n", (("a", "b"), [[], []])),
    "a Markdown table": Case("rule.tsv", b"| a | b |\n|---|:--|\n| 1 | 2 |\n",
                             (("", " a ", " b ", ""), [[""], [" 1 "], [" 2 "], [""]])),
    "dashes lower down stay": Case("dashes.csv", b"a,b\n1,2\n---,---\n", (("a", "b"), [["1", "---"], ["2", "---"]])),
    "single dashes stay": Case("dash.csv", b"a,b\n-,-\n1,2\n", (("a", "b"), [["-", "1"], ["-", "2"]])),
    "a row with a dashed cell stays": Case("halfdash.csv", b"a,b\n--,x\n", (("a", "b"), [["--"], ["x"]])),
    "one column": Case("one.csv", b"name\nAnn\nBo\n", (("name",), [["Ann", "Bo"]])),
    "one column with a blank cell": Case("one2.csv", b'name\nAnn\n" "\n', (("name",), [["Ann", " "]])),
    "one cell": Case("cell.csv", b"name", (("name",), [[]])),
    "blank lines only make no rows": Case("norows.csv", b"a,b\n\n  \n\n", (("a", "b"), [[], []])),
    # --- lines before the header
    "a title and a blank line": Case("title.csv", b"Customer master data, export of 2023-05-01\n\n" + TABLE, TABLE_READ, PREAMBLE),
    "a title and a blank line over two columns": Case("title2.csv", b"Customers\n\n" + PLAIN, READ, PREAMBLE),
    "a title": Case("title3.csv", b"Customers\n" + TABLE, TABLE_READ, PREAMBLE),
    "a title filled up with delimiters": Case("title4.csv", b"Customers,,,\nof 2023,,\n,,,\n" + TABLE, TABLE_READ, PREAMBLE),
    "a title in a row of its table's width": Case("title5.csv", b"Customers,,,\n,,,\n" + TABLE, TABLE_READ, PREAMBLE),
    "a header of one name": Case("onename.csv", b"who,,\nAnn,tea,milk\nBo,tea,bread\n",
                                 (("who", "", ""), [["Ann", "Bo"], ["tea", "tea"], ["milk", "bread"]])),
    "several lines": Case("titles.csv", b'\n"Source","Indicators",\n\n"Updated","2023-12-18",\n\nCountry,Code,2020,2021,\nA,a,1,2,\nB,b,3,,\n',
                          (("Country", "Code", "2020", "2021", ""), [["A", "B"], ["a", "b"], ["1", "3"], ["2", ""], ["", ""]]), PREAMBLE),
    "a comment": Case("comment.csv", b"# exported by crm 4.2\n" + TABLE, TABLE_READ, PREAMBLE),
    "a comment over two columns": Case("comment2.csv", b"# exported by crm 4.2\n" + PLAIN, READ, PREAMBLE),
    "a comment with commas": Case("comment3.csv", b"// from a, b, c, d, e\n" + TABLE, TABLE_READ, PREAMBLE),
    "a title over semicolons": Case("titlesemi.csv", "Bevölkerung, Stand 2023\n\nOrt;Fläche;Jahr\nUlm;118,7;2020\nJena;114,8;2021\n".encode(),
                                    (("Ort", "Fläche", "Jahr"), [["Ulm", "Jena"], ["118,7", "114,8"], ["2020", "2021"]]), PREAMBLE),
    "a title and a source below": Case("source.csv", b"Customers\n" + TABLE + b"Source: crm\n",
                                       (TABLE_READ[0], [["1", "2", "Source: crm"], *([*one, None] for one in TABLE_READ[1][1:])]), PREAMBLE),
    "a short header over names": Case("planets.csv", b"Planet,Star\nMars,Sol,red,dry\nVenus,Vega,hot,wet\n",
                                      (("Planet", "Star"), [["Mars", "Venus"], ["Sol", "Vega"]]), ("cells-dropped",)),
    "row numbers without a name": Case("r.csv", b"city,mail\nr1,Paris,x@y\nr2,Rome,u@v\n",
                                       (("city", "mail"), [["r1", "r2"], ["Paris", "Rome"]]), ("cells-dropped",)),
    "a delimiter at every end": Case("ends2.csv", b"a,b,c\nx,y,z,,\nu,v,w,,\n", (("a", "b", "c"), [["x", "u"], ["y", "v"], ["z", "w"]])),
    "vectors without names": Case("vectors.csv", b"word,vector\nking,0.1,0.2,0.3\nqueen,0.3,0.2,0.1\n",
                                  (("word", "vector"), [["king", "queen"], ["0.1", "0.3"]]), ("cells-dropped",)),
    "lists without names": Case("lists.csv", b"who,what\nAnn,tea,milk,rice\nBo,tea,bread,salt\n",
                                (("who", "what"), [["Ann", "Bo"], ["tea", "tea"]]), ("cells-dropped",)),
    "a short header and every second line blank": Case("second.csv", b"a,b\n\nx,y,z\n\nu,v,w\n", (("a", "b"), [["x", "u"], ["y", "v"]]), ("cells-dropped",)),
    "a header like a comment": Case("hashed.csv", b"#id,city\n1,Paris\n2,Rome\n", (("#id", "city"), READ[1])),
    "a header like a comment, and row numbers": Case("hashed2.csv", b"#id,city\nr1,1,Paris\nr2,2,Rome\n",
                                                     (("#id", "city"), [["r1", "r2"], ["1", "2"]]), ("cells-dropped",)),
    "ragged rows": Case("ragged.csv", b"a\nx,y,z\nu,v\nw\np,q,r\n", (("a",), [["x", "u", "w", "p"]]), ("cells-dropped",)),
    "a text of one column": Case("prose.csv", b"text\nHello\nWell, then, no\nYes, no, yes\nAh\nOh\n", (("text",), [["Hello", "Well", "Yes", "Ah", "Oh"]]), ("cells-dropped",)),
    # --- headers
    "repeated headers": Case("repeat.csv", b"a,a\n1,2\n", (("a", "a"), [["1"], ["2"]])),
    "blank headers": Case("blankhead.csv", b"a,, \n1,2,3\n", (("a", "", " "), [["1"], ["2"], ["3"]])),
    "padded headers": Case("pad.csv", b" a ,\tb\n1,2\n", ((" a ", "\tb"), [["1"], ["2"]])),
    "a header with a line break": Case("breakhead.csv", b'"a\nb",c\n1,2\n', (("a\nb", "c"), [["1"], ["2"]])),
    "bracketed headers": Case("bracket.csv", b"[id],[name]\n1,x\n", (("[id]", "[name]"), [["1"], ["x"]])),
    "headers in JSON's brackets": Case("bracket2.csv", b'["id"],["name"]\n1,x\n',
                                       (('["id"]', '["name"]'), [["1"], ["x"]])),
    "a header like a file's first bytes": Case("par1.csv", b"PAR1,ORC\n1,2\n", (("PAR1", "ORC"), [["1"], ["2"]])),
    "another one": Case("bzh.csv", b"BZh,x\n1,2\n", (("BZh", "x"), [["1"], ["2"]])),
    # --- encodings
    "UTF-8": Case("utf8.csv", "n°,ville\n1,Orléans\n".encode(), ACCENTS),
    "UTF-8 with a mark": Case("bom8.csv", "n°,ville\n1,Orléans\n".encode("utf-8-sig"), ACCENTS),
    "two marks": Case("bom88.csv", b"\xef\xbb\xbf\xef\xbb\xbfa,b\n1,2\n", ONE),
    "a mark before a quote": Case("bomq.csv", b'\xef\xbb\xbf"a","b"\n1,2\n', ONE),
    "UTF-16 LE with a mark": Case("u16le.csv", b"\xff\xfe" + "n°,ville\n1,Orléans\n".encode("utf-16-le"), ACCENTS),
    "UTF-16 BE with a mark": Case("u16be.csv", b"\xfe\xff" + "n°,ville\n1,Orléans\n".encode("utf-16-be"), ACCENTS),
    "UTF-32 LE with a mark": Case("u32le.csv", b"\xff\xfe\0\0" + "n°,ville\n1,Orléans\n".encode("utf-32-le"), ACCENTS),
    "UTF-32 BE with a mark": Case("u32be.csv", b"\0\0\xfe\xff" + "n°,ville\n1,Orléans\n".encode("utf-32-be"), ACCENTS),
    "UTF-16 LE without a mark": Case("n16le.csv", "n°,ville\n1,Orléans\n".encode("utf-16-le"), ACCENTS),
    "UTF-16 BE without a mark": Case("n16be.csv", "n°,ville\n1,Orléans\n".encode("utf-16-be"), ACCENTS),
    "UTF-16 with tabs, as Excel writes it": Case("excel.csv", "a\tb\r\n1\t2\r\n".encode("utf-16"), ONE),
    "Latin-1": Case("latin1.csv", "n°,ville\n1,Orléans\n".encode("latin-1"), ACCENTS),
    "a short Latin-1 file": Case("short1.csv", b"\xe9t\xe9,b\n1,2\n", (("été", "b"), [["1"], ["2"]])),
    "Windows-1252": Case("cp1252.csv", b"a,b\n\x80 5,\x93x\x94\n", (("a", "b"), [["€ 5"], ["“x”"]])),
    "bytes that Windows-1252 lacks": Case("undefined.csv", b"a,b\nx\x81,caf\xe9\n", (("a", "b"), [["x\x81"], ["café"]])),
    "Windows-1251": Case("cp1251.csv", CYRILLIC.encode("cp1251"), rows_of(CYRILLIC)),
    "Windows-1253": Case("cp1253.csv", GREEK.encode("cp1253"), rows_of(GREEK)),
    "Shift JIS": Case("sjis.csv", JAPANESE.encode("cp932"), rows_of(JAPANESE)),
    "GB 18030": Case("gb.csv", CHINESE.encode("gb18030"), rows_of(CHINESE)),
    "UTF-8 cut in a character": Case("cut8.csv", "a,b\né,à".encode()[:-1], (("a", "b"), [["é"], ["\ufffd"]]),
                                     ("bytes-replaced",)),
    "UTF-8 with a stray byte": Case("stray.csv", b"a,b\n" + "é,à\n".encode() * 9 + b"x\xff,y\n",
                                    (("a", "b"), [[*["é"] * 9, "x\ufffd"], [*["à"] * 9, "y"]]), ("bytes-replaced",)),
    "UTF-16 cut in a character": Case("cut16.csv", "a,b\n1,2\n".encode("utf-16")[:-1], "encoding"),
    "a lone surrogate in UTF-16": Case("lone.csv", b"\xff\xfea\0,\0\0\xd8\n\0", "encoding"),
    "UTF-32 beyond Unicode": Case("beyond.csv", b"\xff\xfe\0\0\xff\xff\xff\xff", "encoding"),
    "a NUL byte": Case("nul.csv", b"a,b\n1,\x002\n", "nul-bytes"),
    "NUL bytes only": Case("nuls.csv", b"\0" * 100, "nul-bytes"),
    "a NUL character in UTF-16": Case("nul16.csv", "a,b\n1,\x002\n".encode("utf-16"), "nul-bytes"),
    # --- delimiters
    "semicolons": Case("semi.csv", b"name;price\nA;1,5\nB;22,75\n", (("name", "price"), [["A", "B"], ["1,5", "22,75"]])),
    "bars": Case("bar.csv", b"a|b\n1|2\n3|4\n", TWO),
    "tabs in a .csv": Case("tab.csv", b"a\tb\n1\t2\n3\t4\n", TWO),
    "commas in a .tsv": Case("comma.tsv", b"a,b\n1,2\n3,4\n", TWO),
    "tabs in a .tsv": Case("tab.tsv", b"a\tb,c\n1,5\t2\n", (("a", "b,c"), [["1,5"], ["2"]])),
    "hashes": Case("hash.csv", b"a#b#c\n1#x, y#2\n3#z#4\n", (("a", "b", "c"), [["1", "3"], ["x, y", "z"], ["2", "4"]])),
    "sep= names the delimiter": Case("sep.csv", b"sep=;\r\na;b\r\n1;2\r\n", ONE),
    "sep= names a rare one": Case("sep2.csv", b"SEP=^\na^b\n1^2\n", ONE),
    "a column called sep": Case("sep3.csv", b"sep,b\n1,2\n", (("sep", "b"), [["1"], ["2"]])),
    "commas are the .csv's own": Case("tie.csv", b"a,b|c\n1,2|3\n", (("a", "b|c"), [["1"], ["2|3"]])),
    "semicolons in a text column": Case("text.csv", b"id,text\n1,\"x; y; z\"\n2,\"u; v; w\"\n",
                                        (("id", "text"), [["1", "2"], ["x; y; z", "u; v; w"]])),
    # --- quotes
    "doubled quotes": Case("double.csv", b'a,b\n"say ""hi""","x, y"\n', (("a", "b"), [['say "hi"'], ["x, y"]])),
    "quoted line ends": Case("lines.csv", b'a,b\n"x\ny","1\r\n2"\n', (("a", "b"), [["x\ny"], ["1\r\n2"]])),
    "backslash escapes": Case("backslash.csv", BACKSLASH, BACKSLASH_READ),
    "backslashes before quotes, unquoted": Case("bare.csv", b'a,b\nsay \\"x\\",1\n', (("a", "b"), [['say "x"'], ["1"]])),
    "an escaped delimiter": Case("escdelim.csv", b"a,b\nx\\, y,1\nz,2\n", (("a", "b"), [["x, y", "z"], ["1", "2"]])),
    "backslashes that escape nothing": Case("path.csv", b"a,b\nC:\\dir,\\N\n", (("a", "b"), [["C:\\dir"], ["\\N"]])),
    "a quoted folder that ends in a backslash": Case("dir.csv", b'a,b\n"C:\\dir\\","x"\n"D:\\","y"\n',
                                                     (("a", "b"), [["C:\\dir\\", "D:\\"], ["x", "y"]])),
    "single quotes": Case("single.csv", b"'a','b'\n'x, y','1'\n'it''s','2'\n",
                          (("a", "b"), [["x, y", "it's"], ["1", "2"]])),
    "apostrophes": Case("apos.csv", b"a,b\nit's,don't\n'tis,x\n", (("a", "b"), [["it's", "'tis"], ["don't", "x"]])),
    "inches": Case("inch.csv", b'a,b\n5" pipe,1\n7" pipe,2\n', (("a", "b"), [['5" pipe', '7" pipe'], ["1", "2"]])),
    "text behind a closing quote": Case("behind.csv", b'a,b\n"x"y,1\n"u",2\n', (("a", "b"), [["xy", "u"], ["1", "2"]])),
    "quotes that mean nothing": Case("free.tsv", b'a\tb\n"x\t1\ny"\t2\n"z\t3\n',
                                     (("a", "b"), [['"x', 'y"', '"z'], ["1", "2", "3"]])),
    "an unbalanced quote": Case("swallow.csv", SWALLOW, SWALLOW_READ),
    "an unbalanced quote far down": Case("late.csv", LATE, LATE_READ),
    "an unbalanced quote in the last row": Case("last.csv", b'a,b\n1,2\n3,"4\n', TWO),
    # --- compression
    "gzip": Case("plain.csv.gz", gzip.compress(PLAIN), READ),
    "zstd": Case("plain.csv.zst", zstd(PLAIN), READ),
    "extensions in capitals": Case("PLAIN.CSV.GZ", gzip.compress(PLAIN), READ),
    "gzip without its extension": Case("hidden.csv", gzip.compress(PLAIN), READ),
    "zstd under .gz": Case("wrong.csv.gz", zstd(PLAIN), READ),
    "plain text under .gz": Case("notpacked.csv.gz", PLAIN, READ),
    "gzip of several members": Case("members.csv.gz", gzip.compress(PLAIN[:11]) + gzip.compress(PLAIN[11:]), READ),
    "zstd of several frames": Case("frames.csv.zst", zstd(PLAIN[:11]) + zstd(PLAIN[11:]), READ),
    "a packed .tsv": Case("plain.tsv.gz", gzip.compress(b"a\tb\n1\t2\n"), ONE),
    "packed Parquet": Case("plain.parquet.gz", gzip.compress(GOOD_PARQUET), PARQUET_READ),
    "packed UTF-16": Case("u16.csv.gz", gzip.compress("a,b\n1,2\n".encode("utf-16")), ONE),
    "packed emptiness": Case("nothing.csv.gz", gzip.compress(b""), "empty"),
    "cut gzip": Case("cut.csv.gz", gzip.compress(PLAIN * 99)[:-9], "compressed"),
    "cut zstd": Case("cut.csv.zst", zstd(PLAIN * 99)[:-5], "compressed"),
    "gzip's first bytes alone": Case("magic.csv", b"\x1f\x8b", "compressed"),
    "damaged gzip": Case("damaged.csv.gz", gzip.compress(PLAIN)[:-8] + b"\0" * 8, "compressed"),
    "junk behind gzip": Case("junk.csv.gz", gzip.compress(PLAIN) + b"junk", "compressed"),
    "gzip in gzip": Case("twice.csv.gz", gzip.compress(gzip.compress(PLAIN)), "other-format"),
    "a gzip bomb": Case("bomb.csv.gz", gzip.compress(b"1,2\n" * (40 << 18)), "bomb"),
    "a zstd bomb": Case("bomb.csv.zst", zstd(b"1,2\n" * (40 << 18)), "bomb"),
    "a bomb of one packed line": Case("bomb2.csv.gz", gzip.compress(b"x" * (40 << 20), 1), "bomb"),
    # --- emptiness
    "an empty file": Case("empty.csv", b"", "empty"),
    "line ends only": Case("ends.csv", b"\n\r\n\r", "empty"),
    "blanks only": Case("white.csv", b" \t \n ", "empty"),
    "a mark only": Case("mark.csv", b"\xef\xbb\xbf", "empty"),
    "a UTF-16 mark only": Case("mark16.csv", b"\xff\xfe", "empty"),
    "Ctrl-Z only": Case("onlyz.csv", b"\x1a", "empty"),
    "an empty .parquet": Case("empty.parquet", b"", "empty"),
    # --- something else under a table's name
    "Parquet under .csv": Case("really.csv", GOOD_PARQUET, PARQUET_READ),
    "a workbook": Case("book.csv", zipped(["[Content_Types].xml", "xl/workbook.xml"]), "other-format"),
    "an empty zip": Case("emptyzip.csv", zipped([]), "other-format"),
    "an old workbook": Case("old.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "other-format"),
    "SQLite": Case("sqlite.csv", sqlite, "other-format"),
    "a PDF": Case("pdf.csv", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\0", "other-format"),
    "a PNG": Case("png.tsv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "other-format"),
    "a JPEG": Case("jpeg.csv", b"\xff\xd8\xff\xe0\0\x10JFIF", "other-format"),
    "a GIF": Case("gif.csv", b"GIF89a\x01\0\x01\0", "other-format"),
    "bzip2": Case("bz2.csv", b"BZh91AY&SY\x01\x02\x03", "other-format"),
    "xz": Case("xz.csv", b"\xfd7zXZ\0\0\x04", "other-format"),
    "7z": Case("seven.csv", b"7z\xbc\xaf\x27\x1c\0\x04", "other-format"),
    "RAR": Case("rar.csv", b"Rar!\x1a\x07\x01\0", "other-format"),
    "lz4": Case("lz4.csv", b"\x04\x22\x4d\x18d@\xa7", "other-format"),
    "Feather": Case("feather.csv", b"ARROW1\0\0\xff\xff\xff\xff", "other-format"),
    "ORC": Case("orc.csv", b"ORC\n\x03\0\0\0", "other-format"),
    "Avro": Case("avro.csv", b"Obj\x01\x04\x16avro.schema\0", "other-format"),
    "HDF5": Case("hdf.csv", b"\x89HDF\r\n\x1a\n\0\0", "other-format"),
    "a program": Case("elf.csv", b"\x7fELF\x02\x01\x01\0", "other-format"),
    "DuckDB": Case("duck.csv", b"\x01" * 8 + b"DUCK\x40\0\0\0", "other-format"),
    "encrypted Parquet under .csv": Case("pare.csv", b"PARE\x15\x04\0PARE", "other-format"),
    "HTML": Case("html.csv", b"\n<!DOCTYPE html><html><body>404, not found</body></html>", "other-format"),
    "HTML without a doctype": Case("html2.csv", b"<HTML lang=en>\n<p>x,y\n", "other-format"),
    "XML": Case("xml.csv", b'<?xml version="1.0"?>\n<a/>', "other-format"),
    "RTF": Case("rtf.csv", b"{\\rtf1\\ansi x}", "other-format"),
    "a git-lfs pointer": Case("lfs.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
                              "other-format"),
    "JSON objects": Case("json.csv", json.dumps([{"a": 1, "b": [2]}]).encode(), "other-format"),
    "a JSON object": Case("json2.csv", b' {"a": {"b": 1}}\n', "other-format"),
    "JSON lists": Case("json3.csv", b'[["a", "b"], [1, 2]]', "other-format"),
    "JSON Lines": Case("jsonl.csv", b'{"a": 1}\n{"a": 2}\n', "other-format"),
    "deep JSON": Case("deep.csv", b"[" * 100_000, "other-format"),
    "cells like JSON": Case("cells.csv", b'{"a": 1},b\n1,2\n', (('{"a": 1}', "b"), [["1"], ["2"]])),
    "a workbook under .parquet": Case("book.parquet", zipped(["xl/workbook.xml"]), "other-format"),
    # --- Parquet
    "Parquet": Case("good.parquet", GOOD_PARQUET, PARQUET_READ),
    "Parquet without rows": Case("norows.parquet", parquet({"a": pa.array([], pa.int64())}), (("a",), [[]])),
    "Parquet without columns": Case("nocols.parquet", parquet({}), ((), [])),
    "nested Parquet": Case("nested.parquet", parquet({"a": [[1, 2], None], "b": [{"x": 1}, {"x": None}]}),
                           (("a", "b"), [["[1, 2]", None], ['{"x": 1}', '{"x": null}']])),
    "cut Parquet": Case("cut.parquet", GOOD_PARQUET[: len(GOOD_PARQUET) // 2], "parquet"),
    "Parquet without its last byte": Case("cut1.parquet", GOOD_PARQUET[:-1], "parquet"),
    "Parquet with a damaged footer": Case("foot.parquet", GOOD_PARQUET[:-30] + b"\xff" * 22 + GOOD_PARQUET[-8:], "parquet"),
    "Parquet's first bytes alone": Case("par1.parquet", b"PAR1", "parquet"),
    "encrypted Parquet": Case("crypt.parquet", b"PARE" + GOOD_PARQUET[4:-4] + b"PARE", "parquet"),
    "text under .parquet": Case("text.parquet", PLAIN, "parquet"),
    "long Parquet cells": Case("long.parquet", parquet({"a": ["x" * 9_000, "y"]}), (("a",), [["x" * 8_192, "y"]]),
                               ("cells-cut",)),
    "wide Parquet": Case("wide.parquet", parquet({f"c{i}": [str(i)] for i in range(2_100)}), WIDE_READ,
                         ("columns-cut",)),
    # --- bounds
    "a long cell": Case("longcell.csv", b"a,b\n" + b"x" * 9_000 + b",1\n", (("a", "b"), [["x" * 8_192], ["1"]]),
                        ("cells-cut",)),
    "a long cell of long characters": Case("longcell2.csv", ("a,b\n" + "日" * 9_000 + ",1\n").encode(),
                                           (("a", "b"), [["日" * 8_192], ["1"]]), ("cells-cut",)),
    "a cell of more bytes than characters": Case("longcell3.csv", ("a,b\n" + "日" * 5_000 + ",1\n").encode(),
                                                 (("a", "b"), [["日" * 5_000], ["1"]])),
    "a long header": Case("longhead.csv", b"x" * 9_000 + b",b\n1,2\n", (("x" * 8_192, "b"), [["1"], ["2"]])),
    "many columns": Case("wide.csv", WIDE, WIDE_READ, ("columns-cut",)),
    "a line without end": Case("line.csv", lambda path: sparse(path, 30 << 20, b"x,"), "long-line"),
    "a cell without end": Case("field.csv", b"a,b\n" + b"x" * ((8 << 20) - 1) + b"y" * 9 + b",1\n", "long-field"),
    # --- what is no file
    "a folder with a table's name": Case("folder.csv", folder_with("in.csv", PLAIN), READ),
    "a named pipe": Case("fifo.csv", os.mkfifo, "fifo"),
    "a socket": Case("socket.csv", listening, "socket"),
    "a link to a device": Case("null.csv", link_to("/dev/null"), "link-outside"),
    "a link to nothing": Case("dangling.csv", link_to("nowhere.csv"), "dangling-link"),
    "a link in a circle": Case("loop.csv", linked_pair, "link-loop"),
    "a link to itself": Case("self.csv", lambda path: path.symlink_to(path.name), "link-loop"),
    "a link out of the lake": Case("out.csv", link_to("/etc/passwd"), "link-outside"),
    "a link to the folder above": Case("up.csv", link_to(".."), "linked-folder"),
    "a link to the lake itself": Case("around", link_to("."), "linked-folder"),
    # --- names
    "a name that is no UTF-8": Case("\udcff\udcfe.csv", PLAIN, READ),
    "a name with a line end and colours": Case("a\n\x1b[31mred.csv", PLAIN, READ),
    "a name of blanks": Case(" .csv", PLAIN, READ),
    "a name with dots": Case("..a...csv"[2:], PLAIN, READ),
    "a long name": Case("n" * 251 + ".csv", PLAIN, READ),
}  # fmt: skip


def sparse(path, size, piece):
    with path.open("wb") as file:
        for _ in range(size // (1 << 20)):
            file.write(piece * ((1 << 20) // len(piece)))


def make(case, root):
    """Put a case's file below a folder."""
    path = root / case.file
    if callable(case.content):
        case.content(path)
    else:
        path.write_bytes(case.content)
