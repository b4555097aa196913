"""Recipe to dataset.

    build_dataset({"name": ..., "sources": [...], "tokenizer": {...}, ...}, Path("data"), workers=8)

Stages: *survey* reads every document once (content hash, size, signatures); *prepare* decides what
the declared steps leave out and trains or opens the tokenizer; *encode* reads every document again
and writes shards; *finish* puts the shards of all groups in order, writes the index and gives the
dataset its name. Survey and encode go group by group (``plan.py``).

Guarantees: equal recipes and equal sources give byte-identical datasets, whatever the number of
workers, threads or processes, the order in which groups are built, and however often the build was
interrupted. The result appears under its name complete or not at all. A build that was killed goes
on where it was: finished surveys and finished shards are kept (``build_directory.py``). Memory
does not grow with the corpus beyond some tens of bytes a document; it is a shard of each split and
a few MiB a worker.

On a cluster the groups are built by tasks of their own, in any order, with a barrier between the
stages: ``survey_group`` for each group, ``prepare_build``, ``build_group`` for each group,
``finish_build``. Files are hashed by the first task only. The directory must lie on a file system
that all of them see, with locks.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline import encode, survey
from data_pipeline.assemble import assemble
from data_pipeline.build_directory import BuildDirectory
from data_pipeline.canonical import sha256_hex
from data_pipeline.contamination import Evaluations
from data_pipeline.durable import publish_directory, write_bytes
from data_pipeline.errors import DatasetError
from data_pipeline.meter import Meter, Progress
from data_pipeline.plan import Group, Plan
from data_pipeline.recipe import Recipe
from data_pipeline.removal import decide, kept_mask
from data_pipeline.survey import Survey, SurveyTask
from data_pipeline.tokenizer import EOD_TEXT, Tokenizer
from data_pipeline.tokenizer_source import open_tokenizer
from data_pipeline.training_sample import train_on_sample
from data_pipeline.workers import Workers


def build_dataset(
    spec: Mapping[str, Any], out: Path, workers: int = 1, progress: Progress | None = None
) -> str:
    """Build a dataset directory, or go on with a build that was interrupted.

    Args:
        spec: The recipe; see ``recipe.Recipe.parse``. ``name`` is for people; it does not enter
            the index.
        out: The directory to create.
        workers: Processes that hash and encode. Any number gives the same bytes. With more than
            one, a script needs ``if __name__ == "__main__":``.
        progress: Called with a line of text now and then.

    Returns:
        The index digest.

    Raises:
        DatasetError: A bad recipe, a source that is not what its record says, a dataset that
            exists, or another build that is running.
        OSError: The disk is full. ``out`` does not exist then; the same call goes on where it was.
    """
    build = _Build(spec, Path(out), workers, progress, hash_files=True)
    with build.place.held():
        build.claim(may_clear=True)
        if not build.is_assembled:
            build.survey(build.plan.groups)
            build.prepare()
            build.encode(build.plan.groups)
        return build.finish()


def plan_groups(spec: Mapping[str, Any]) -> tuple[Group, ...]:
    """Return the groups of a recipe; they depend on its files and ``group_bytes`` only.

    Raises:
        DatasetError: A bad recipe, or a source that cannot be opened.
    """
    return Plan.make(Recipe.parse(spec)).groups


def survey_group(
    spec: Mapping[str, Any],
    out: Path,
    group: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Survey one group of a build of ``out``; nothing is done twice.

    Args:
        spec: The recipe.
        out: The dataset that is to be.
        group: Its number.
        workers: Processes.
        progress: Called with a line of text now and then.

    Raises:
        DatasetError: As ``build_dataset``; also when ``out`` is being built from another recipe.
    """
    build = _Build(spec, Path(out), workers, progress)
    with build.place.held(group):
        build.claim(may_clear=False)
        build.survey([build.group(group)])


def prepare_build(spec: Mapping[str, Any], out: Path, progress: Progress | None = None) -> None:
    """Decide what is left out and make the tokenizer, once all groups are surveyed.

    Raises:
        DatasetError: As ``survey_group``; also when a group is not surveyed.
    """
    build = _Build(spec, Path(out), 1, progress)
    with build.place.held():
        build.claim(may_clear=False)
        build.prepare()


def build_group(
    spec: Mapping[str, Any],
    out: Path,
    group: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write the shards of one group, once the build is prepared; arguments as ``survey_group``.

    Raises:
        DatasetError: As ``survey_group``; also when the build is not prepared.
    """
    build = _Build(spec, Path(out), workers, progress)
    with build.place.held(group):
        build.claim(may_clear=False)
        build.encode([build.group(group)])


def finish_build(spec: Mapping[str, Any], out: Path, progress: Progress | None = None) -> str:
    """Give the dataset its name, once all groups are built, and return the index digest.

    Raises:
        DatasetError: As ``survey_group``; also when a group is not built.
    """
    build = _Build(spec, Path(out), 1, progress)
    with build.place.held():
        build.claim(may_clear=False)
        return build.finish()


class _Build:
    """The stages, each of which does only what is missing."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        out: Path,
        workers: int,
        progress: Progress | None,
        hash_files: bool = False,
    ) -> None:
        self.recipe = Recipe.parse(spec)
        self.place = BuildDirectory(out)
        known = None if hash_files else self.place.known_files(self.recipe)
        self.plan = Plan.make(self.recipe, workers, known)
        self.workers = workers
        self.say = progress or (lambda line: None)

    def group(self, number: int) -> Group:
        if not 0 <= number < len(self.plan.groups):
            raise DatasetError(
                f"group: expected a number in [0, {len(self.plan.groups)}), found {number}"
            )
        return self.plan.groups[number]

    def claim(self, may_clear: bool) -> None:
        news = self.place.claim(self.plan, may_clear)
        if news is not None:
            self.say(f"{self.recipe.name}: {news}")

    @property
    def is_assembled(self) -> bool:
        return (self.place.final / "index.json").is_file()

    def survey(self, groups: Iterable[Group]) -> None:
        wanted = [g for g in groups if not self.place.survey(g.number, "json").is_file()]
        if not wanted:
            return
        evaluations = self._evaluations()
        steps = (self.recipe.exact, self.recipe.near, evaluations)
        task = SurveyTask(any(steps), self.recipe.near, evaluations)
        meter = Meter(self.say, "reading", sum(group.size for group in wanted))
        with Workers[survey.Chunk, survey.Surveyed](task, self.workers) as pool:
            for group in wanted:
                survey.survey_group(self.plan, group, self.place, pool, meter)
        meter.tell()

    def prepare(self) -> None:
        found = self._surveyed()
        total = f"{found.documents:,} documents, {found.size:,} bytes"
        if not self.place.decisions.is_file():
            decide(self.place, found, self.recipe, self._evaluations())
        kept = kept_mask(self.place.kept, found.documents)
        self.say(f"{self.recipe.name}: {total}, {found.documents - int(kept.sum()):,} left out")
        if not self.place.tokenizer.is_file():
            if self.recipe.trains_tokenizer:
                tokenizer = train_on_sample(self.plan, found, kept, self.say)
            else:
                tokenizer = open_tokenizer(self.recipe.tokenizer)
            write_bytes(self.place.tokenizer, tokenizer.data)
            _, encoder = encode.made_encoder(tokenizer.data, tokenizer.eod, tokenizer.bos)
            notice = encoder.notice
            if notice is not None:
                self.say(notice)

    def encode(self, groups: Iterable[Group]) -> None:
        wanted = [g for g in groups if encode.group_record(self.place, g.number) is None]
        if not wanted:
            return
        found = self._surveyed()
        if not (self.place.decisions.is_file() and self.place.tokenizer.is_file()):
            raise DatasetError(f"{self.place.root}: expected a prepared build; prepare it first")
        tokenizer, kept = self._tokenizer(), kept_mask(self.place.kept, found.documents)
        parts = {group: found.part(group.number) for group in wanted}
        sizes = [found.sizes(g.number)[kept[part]].sum() for g, part in parts.items()]
        meter = Meter(self.say, "encoding", int(sum(sizes)))
        task = encode.EncodeTask.of(tokenizer)
        with Workers[encode.Chunk, encode.Encoded](task, self.workers) as pool:
            for group, part in parts.items():
                encode.encode_group(
                    self.plan, group, self.place, found, kept[part], tokenizer, pool, meter
                )
        meter.tell()

    def finish(self) -> str:
        if not self.is_assembled:
            assemble(self.plan, self.place, self._surveyed(), self._tokenizer())
        digest = sha256_hex((self.place.final / "index.json").read_bytes())
        self.place.clear_but_final()
        publish_directory(self.place.final, self.place.out)
        self.place.remove()
        self.say(f"{self.recipe.name}: index digest {digest}")
        return digest

    def _evaluations(self) -> Evaluations | None:
        rule = self.recipe.decontamination
        return None if rule is None else Evaluations.read(self.plan.evaluations, rule.ngram)

    def _surveyed(self) -> Survey:
        missing = [
            group.number
            for group in self.plan.groups
            if not self.place.survey(group.number, "json").is_file()
        ]
        if missing:
            raise DatasetError(
                f"{self.place.root}: expected all groups to be surveyed, found that {missing[:5]} "
                "are not; survey them first"
            )
        return Survey(self.place, len(self.plan.groups))

    def _tokenizer(self) -> Tokenizer:
        spec = self.recipe.tokenizer
        if self.recipe.trains_tokenizer:
            return Tokenizer.load(self.place.tokenizer)
        return Tokenizer.load(self.place.tokenizer, spec.get("eod", EOD_TEXT), spec.get("bos"))
