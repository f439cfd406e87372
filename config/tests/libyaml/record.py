#!/usr/bin/env python3
"""Records what libyaml makes of a corpus of documents: `python3 record.py` writes corpus.json anew, always the same.

Needs PyYAML with its C parser (Debian: python3-yaml). The tests of the YAML reader hold it to corpus.json and need no
Python. Each entry is a text and what it stands for: a list of documents, or null where libyaml finds a syntax error.
Scalars are texts, but for null. Merge keys are merged and of a doubled key the last value stays, as go-yaml does it.
A key that is no text is left out and its document has `problem`, and so has a document with a doubled key.
"""
import json
import random
from pathlib import Path

import yaml

WORDS = ["a", "b", "host", "www.example.com", "443", "yes", "null", "~", "0x1f", "x y", "a-b", "k:v", "a#b", "1.5", "é", "日本", "-x", "?y", "a,b", "&c"[1:], "<<x"]
KEYS = ["a", "b", "hosts", "port", "name", "tls", "spec", "x y", "k1", "k2", "match", "é"]


class Writer:
    """Writes trees in as many ways as people do."""

    def __init__(self, rng):
        self.rng = rng
        self.anchors = []
        self.numbers = 0

    def pick(self, *choices):
        return self.rng.choice(choices)

    def chance(self, share):
        return self.rng.random() < share

    def document(self):
        self.anchors = []
        head = self.rng.choices(["", "---\n", "--- # comment\n", "%YAML 1.1\n---\n", "# comment\n", "\n\n"], [6, 4, 1, 1, 2, 1])[0]
        kind = self.rng.choices(["map", "list", "flow", "scalar"], [8, 2, 2, 1])[0]
        if kind == "flow":
            body = self.flow(0, 3) + "\n"
        elif kind == "scalar":
            body = self.scalar(0) + "\n"
        else:
            body = self.block(0, 3, kind)
        return head + body + self.rng.choices(["", "...\n"], [8, 1])[0]

    def block(self, indent, depth, kind):
        count = self.rng.randint(1, 3)
        lines = ""
        for _ in range(count):
            if self.chance(0.1):
                lines += " " * self.rng.randint(0, 6) + "# comment\n"
            if self.chance(0.05):
                lines += "\n"
            if kind == "map":
                if self.anchors and self.chance(0.15):
                    lines += " " * indent + "<<: " + self.pick("*" + self.rng.choice(self.anchors), "[*" + self.rng.choice(self.anchors) + "]", "{z: 1}") + "\n"
                    continue
                lines += " " * indent + self.key() + self.value(indent, depth, "map")
            else:
                lines += " " * indent + "-" + self.value(indent, depth, "list")
        return lines

    def key(self):
        key = self.rng.choice(KEYS)
        style = self.rng.choices(["plain", "double", "single", "space", "explicit"], [12, 2, 1, 1, 1])[0]
        return {"plain": key + ":", "double": f'"{key}":', "single": f"'{key}':", "space": key + " :", "explicit": f"? {key}\n" + ":"}[style] if style != "explicit" or True else key

    def anchor(self):
        if not self.chance(0.15):
            return "", None
        self.numbers += 1
        name = f"n{self.numbers}"
        return f"&{name} ", name

    def value(self, indent, depth, within):
        kind = self.rng.choices(["scalar", "map", "list", "flow", "block", "none", "alias"], [8, 4 if depth else 0, 4 if depth else 0, 4, 2, 1, 2])[0]
        comment = self.rng.choices(["", " # c", "\t# c", "  "], [10, 1, 1, 1])[0]
        if kind == "alias" and self.anchors:
            return f" *{self.rng.choice(self.anchors)}{comment}\n"
        if kind in ("none", "alias"):
            return comment + "\n"
        anchor, name = self.anchor()
        tag = self.rng.choices(["", "!!str ", "!local ", "!<tag:example.com,2000:x> "], [20, 1, 1, 1])[0]
        if kind == "scalar":
            return f" {tag}{anchor}{self.scalar(indent)}{comment}\n"
        if kind == "flow":
            written = self.flow(indent, 2)
            if name and written[0] == "{":
                self.anchors.append(name)
            return f" {anchor}{written}{comment}\n"
        if kind == "block":
            return f" {self.literal(indent)}"
        compact = within == "list" and not anchor and self.chance(0.6)
        step = self.rng.choice([0, 1, 2, 2, 2, 4]) if (kind == "list" and within == "map") else self.rng.choice([1, 2, 2, 4])
        body = self.block(indent + (2 if compact else step), depth - 1, kind)
        if name and kind == "map":
            self.anchors.append(name)
        if compact:
            first = body.lstrip("\n ")
            return " " + first if not first.startswith("#") else "\n" + body
        return f" {anchor}".rstrip() * bool(anchor) + comment + "\n" + body if not anchor else f" {anchor.strip()}{comment}\n" + body

    def scalar(self, indent):
        word = self.rng.choice(WORDS)
        style = self.rng.choices(["plain", "double", "single", "multi", "escape"], [10, 4, 3, 3, 1])[0]
        if style == "plain":
            return word
        if style == "single":
            return "'" + word + self.pick("", " it''s") + "'"
        if style == "double":
            return '"' + word + '"'
        if style == "escape":
            return '"' + self.pick("\\n", "\\t", "\\x41", "\\u00e9", "\\\\", '\\"', "\\/", "a\\\n  b", "\\q") + '"'
        quote = self.pick('"', "'", "")
        # Not always deeper than its key.
        deep = " " * max(0, indent + self.rng.choice([-2, 0, 1, 2, 4]))
        return quote + word + " x\n" + self.pick("", "\n") + deep + "and more" + quote

    def flow(self, indent, depth):
        kind = self.pick("[]", "{}")
        gap = self.flow_gap
        items = []
        for _ in range(self.rng.randint(0, 3)):
            inner = self.flow(indent, depth - 1) if depth and self.chance(0.3) else self.flow_scalar()
            if kind == "{}":
                inner = self.rng.choices([self.rng.choice(KEYS) + ": " + inner, f'"{self.rng.choice(KEYS)}":' + inner, self.rng.choice(KEYS)], [8, 2, 1])[0]
            elif self.chance(0.1):
                inner = self.rng.choice(KEYS) + ": " + inner
            items.append(gap(indent) + inner)
        trailing = "," if items and self.chance(0.15) else ""
        return kind[0] + ",".join(items) + trailing + gap(indent) + kind[1]

    def flow_gap(self, indent):
        return self.rng.choices(["", " ", "\n" + " " * max(0, indent), "\n" + " " * (indent + 2), "\n"], [6, 6, 2, 2, 1])[0]

    def flow_scalar(self):
        if self.anchors and self.chance(0.1):
            return f"*{self.rng.choice(self.anchors)} "
        return self.pick("a", "b", "443", "'q'", '"d"', "www.example.com", '"*.example.com"', "null", "x y", "!t z", '"two\n lines"')

    def literal(self, indent):
        head = self.pick("|", ">", "|-", ">-", "|+", "|2", ">1-")
        lines = []
        for _ in range(self.rng.randint(1, 3)):
            lines.append(self.rng.choices([" " * (indent + 2) + self.rng.choice(WORDS), "", " " * (indent + 4) + "deeper", " " * (indent + 2) + "# no comment"], [6, 1, 1, 1])[0])
        return head + "\n" + "\n".join(lines) + "\n"


def mutated(rng, text):
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(text))
        what = rng.random()
        if what < 0.4:
            text = text[:at] + text[at + rng.randint(1, 3):]
        elif what < 0.8:
            text = text[:at] + rng.choice(["\n", " ", "  ", ":", "- ", ": ", "[", "]", "{", "}", ",", '"', "'", "#", "\t", "*", "&x ", "!", "|", "\\", "---\n", "...\n", "@", "%", "\r", "?"]) + text[at:]
        else:
            text = text[:at]
    return text


HANDMADE = [
    "hosts: [\n  \"a\",\n  \"b\"\n]\n",
    "a:\n  hosts: [\n    x\n  ]\n",
    "metadata:\n  note: \"the first\n  and the second\"\nspec: {}\n",
    "a: 'one\n\n  two'\n",
    "a: &m {x: 1, y: 2}\nb:\n  <<: *m\n  y: 3\n",
    "a: &m {x: 1}\nb: &n {x: 2, z: 3}\nc: {<<: [*m, *n], q: 1}\n",
    "a: 1\na: 2\n",
    "a: {b: 1, b: [2]}\nc: 1\n",
    "[a]: 1\nb: 2\n",
    "? [a, b]\n: 1\nc: 2\n",
    "\ufeffa: 1\n",
    "a: 1\r\nb:\r\n- c\r\n",
    "a: 1\rb: 2\r",
    "{\"a\": {\"b\": [1, 2.5, true, null, \"x\\u00e9\\/\"]}, \"c\":\"d\"}",
    "{\"a\":1,\n\t\"b\":2}\n",
    "- a\n-\tb\n",
    "a:\tb\n",
    "a:\n\tb: 1\n",
    "    a: 1\n    ---\n    b: 2\n",
    "a: 1\n...\nb: 2\n",
    "a: 1\n...\n---\nb: 2\n",
    "spec:\n  ...\n    a:\n      - b: 1\n",
    "a: *.example.com\n",
    "a: [*.example.com]\n",
    "a: \"*.example.com\"\n",
    "a: b: c\n",
    "a: 'b\n",
    "a: [b\n",
    "a: }\n",
    "a: @b\n",
    "a: %b\n",
    "%TAG ! tag:x:\n---\na: !b c\n",
    "a: !!map {b: 1}\n",
    "a: !!null x\n",
    "a: |\n  x\n y\n",
    "a: >\n  x\n  y\n\n  z\n\n",
    "a: |",
    "a: |\n",
    "a: |+\n\n\n",
    "a: \"x\\\n  y\"\n",
    "- - - a\n  - b\n",
    "-\n- \n- a\n",
    "a:\n- b\n- c:\nd:\n",
    "a: b\n c\n  d\ne: f\n",
    "a: b #c\n#d\n  #e\nf: g#h\n",
    "a:b\n",
    "a: x: y\n",
    "'a': 1\n\"b\": 2\n",
    "a: ''\nb: \"\"\nc:\n",
    "? a\n? b\n: c\n",
    "--- a\n--- b\n",
    "---\n---\n",
    "# only a comment\n",
    "",
    "\n",
    "a: \u2028b\n",
    "a: \u0085b\n",
    "a: \x07\n",
    "a: \"\\x07\"\n",
    "{a, b: c, ? d : e}\n",
    "[a: b, c]\n",
    "[a, , b]\n",
    "{a: b, c}\n",
    "[a,b,]\n",
    "a: [!t,b]\n",
    "a: - b\n",
    "a:\n  - b\n - c\n",
    "a:\n  b: 1\n c: 2\n",
    "a: &x\nb: *x\n",
    "a: &x b\n*x : c\n",
    "&k a: 1\nb: *k\n",
    "a: *nowhere\n",
    "a: &x [*x]\n",
    "<<: {a: 1}\nb: 2\n",
    "\"<<\": {a: 1}\n",
    "<<: 1\n",
    "a: -\n",
    "a: ?\n",
    "a: -1\n",
    "a: ?x\n",
    "a: :x\n",
    "a: ::\n",
    ": a\n",
    "a: http://x:1/y#z\n",
    "a: [http://x:1/y]\n",
    "a: {b:1}\n",
    "a: {\"b\":1}\n",
    "key with spaces: v\n",
    "a" * 1030 + ": v\n",
    "\"" + "a" * 1030 + "\": v\n",
    "a: \"" + "b " * 700 + "\"\n",
]


class Lost(Exception):
    pass


def documents(text):
    """The composed documents, or None for a syntax error."""
    try:
        events = list(yaml.parse(text, Loader=yaml.CLoader))
    except (yaml.YAMLError, ValueError):
        return None
    result, at = [], 0
    while at < len(events):
        if isinstance(events[at], yaml.DocumentStartEvent):
            state = {"anchors": {}, "problem": False}
            try:
                value, at = compose(events, at + 1, state)
            except Lost:
                return None
            result.append({"value": value, "problem": state["problem"]})
        at += 1
    return result


def compose(events, at, state):
    event = events[at]
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in state["anchors"]:
            raise Lost
        return state["anchors"][event.anchor], at + 1
    if isinstance(event, yaml.ScalarEvent):
        plain = event.style is None or event.style == ""
        value = event.value
        if plain and event.tag != "tag:yaml.org,2002:str" and value in ("", "~", "null", "Null", "NULL"):
            value = None
        at += 1
    elif isinstance(event, yaml.SequenceStartEvent):
        value, at = [], at + 1
        while not isinstance(events[at], yaml.SequenceEndEvent):
            item, at = compose(events, at, state)
            value.append(item)
        at += 1
    else:
        own, merges, at = [], [], at + 1
        while not isinstance(events[at], yaml.MappingEndEvent):
            key = events[at]
            merge = isinstance(key, yaml.ScalarEvent) and key.value == "<<" and not key.style and key.tag != "tag:yaml.org,2002:str"
            name, at = compose(events, at, state)
            if isinstance(key, yaml.ScalarEvent):
                name = key.value
                if key.anchor:
                    state["anchors"][key.anchor] = name
            item, at = compose(events, at, state)
            if merge:
                merges.append(item)
            elif not isinstance(name, str) or name == "":
                state["problem"] = True
            else:
                if any(k == name for k, _ in own):
                    state["problem"] = True
                own = [(k, v) for k, v in own if k != name] + [(name, item)]
        at += 1
        for merge in merges:
            sources = merge if isinstance(merge, list) else [merge]
            for source in sources:
                if not isinstance(source, dict):
                    state["problem"] = True
                    continue
                for k, v in source.items():
                    if all(k != known for known, _ in own):
                        own.append((k, v))
        value = dict(own)
    if event.anchor:
        state["anchors"][event.anchor] = value
    return value, at


def main():
    rng = random.Random(13)
    texts = list(HANDMADE)
    while len(texts) < len(HANDMADE) + 700:
        writer = Writer(rng)
        text = "".join(writer.document() for _ in range(rng.choices([1, 2], [6, 1])[0]))
        if rng.random() < 0.4:
            text = mutated(rng, text)
        if rng.random() < 0.07:
            text = text.replace("\n", "\r\n")
        if len(text) < 400:
            texts.append(text)
    entries = [{"text": text, "documents": documents(text)} for text in dict.fromkeys(texts)]
    bad = sum(entry["documents"] is None for entry in entries)
    path = Path(__file__).parent / "corpus.json"
    lines = [json.dumps(entry, ensure_ascii=True) for entry in entries]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(entries)} texts, {bad} of them with a syntax error, libyaml {yaml.__with_libyaml__ and '.'.join(map(str, yaml._yaml.get_version()))}")


if __name__ == "__main__":
    main()
