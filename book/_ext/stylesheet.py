"""Of a stylesheet, the rules that can match something in a given set of pages.

A theme brings the whole of Bootstrap and the names of two thousand icons. A rule stays if every
class of one of its selectors is a word somewhere in the pages or their scripts; what stands in
parentheses, as in `:not(.x)`, decides nothing.
"""

import re

STRING = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
TOKEN = re.compile(rf"{STRING}|[{{}};]|[^{{}};\"']+")
INSIDE = re.compile(rf"{STRING}|\[[^]]*\]|\((?:[^()]|\([^()]*\))*\)")
CLASS = re.compile(r"\.((?:\\.|[\w-])+)")
GROUPS = ("@media", "@supports", "@layer", "@container")
"""At-rules whose block holds rules again."""


def blocks(css):
    """(what stands before a block, the block's text) of each; no block where there is only `;`."""
    depth, head, body = 0, [], []
    for token in TOKEN.findall(css):
        if token == "}":
            depth -= 1
            if depth == 0:
                yield "".join(head).strip(), "".join(body)
                head, body = [], []
                continue
        if depth:
            body.append(token)
        elif token == ";":
            yield "".join(head).strip(), None
            head = []
        elif token != "{":
            head.append(token)
        depth += token == "{"


def may_match(selector, words):
    """Whether all classes that a selector needs are among the words."""
    plain = INSIDE.sub("", selector)
    return all(name.replace("\\", "") in words for name in CLASS.findall(plain))


def selectors(head):
    """The selectors of a rule: parts between commas that stand in no parentheses."""
    hidden = INSIDE.sub(lambda found: found[0].replace(",", "\0"), head)
    return [part.replace("\0", ",") for part in hidden.split(",")]


def purge(css, words):
    """The stylesheet without the rules that match nothing."""
    kept = []
    for head, body in blocks(COMMENT.sub("", css)):
        if body is None:
            kept.append(f"{head};")
        elif head.startswith(GROUPS):
            inner = purge(body, words)
            kept += [f"{head}{{{inner}}}"] if inner else []
        elif head.startswith("@"):
            kept.append(f"{head}{{{body}}}")
        elif used := [part for part in selectors(head) if may_match(part, words)]:
            kept.append(f"{','.join(used)}{{{body}}}")
    return "".join(kept)
