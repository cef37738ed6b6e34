"""The campaign: rounds upon rounds on virtual clusters, from one seed, until the time or the faults are used up.

Knows how a round is drawn and set up. Knows no kind of fault by name, and judges nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hpcq.core import environments
from hpcq.core.paths import RunLayout
from tests.command_line import Hpcq
from tests.conftest import OFFLINE, TESTS
from tests.faults import stage
from tests.faults.kinds import KINDS, LATE, Kind
from tests.faults.reporting import Log, Tally
from tests.faults.round import Plan, Round, Verdict
from tests.faults.scene import Scene
from tests.slurm.cluster import VirtualCluster

ROUNDS_ON_A_CLUSTER = 8
PATIENCE_S = 260.0
"""More than the time limit of the rehearsal's jobs, by which Slurm ends what it has lost sight of."""
_CORE = Path(sys.executable)


def set_environment() -> None:
    """Let every process that is started find hpcq, Slurm's daemons, and no network."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    python_path = os.pathsep.join(filter(None, [str(TESTS.parent), os.environ.get("PYTHONPATH")]))
    os.environ.update(OFFLINE, PATH=path, PYTHONPATH=python_path)


class Bag:
    """Kinds of faults in an order that the seed decides; over time each is drawn as often as any other."""

    def __init__(self, kinds: Sequence[Kind], chance: random.Random) -> None:
        self._kinds = kinds
        self._random = chance
        self._drawn: list[Kind] = []

    def draw(self) -> Kind:
        """The next one."""
        if len(self._drawn) <= len(self._kinds) // 2:
            more = [kind for kind in self._kinds if kind not in self._drawn]
            self._drawn += self._random.sample(more, len(more))
        return self._drawn.pop(0)

    def put_back(self, kind: Kind) -> None:
        """Keep one for later that can befall nobody now."""
        if kind not in self._drawn:
            self._drawn.append(kind)


@dataclass(kw_only=True)
class Campaign:
    """A campaign of `faults` faults at most (None: as many as the time allows), for `seconds` at most.

    models: the share of rounds with the real model. patience_s: how long nothing may move.
    folder: of everything; a round's own is removed if all is well.
    """

    seed: int
    folder: Path
    seconds: float
    faults: int | None = None
    models: float = 0.0
    patience_s: float = PATIENCE_S
    kinds: Sequence[str] = tuple(KINDS)
    tally: Tally = field(default_factory=Tally)
    _references: dict[str, stage.Undisturbed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - a seed is to be repeated
        self._log = Log(path=self.folder / "campaign.jsonl")
        self._can_mount = stage.may_mount(self.folder / "mount")
        self._began_s = time.monotonic()
        kinds = [KINDS[name] for name in self.kinds]
        self._bag = Bag(kinds, self._random)
        self._unattended_bag = Bag([kind for kind in kinds if not kind.with_user], self._random)

    def run(self) -> Tally:
        """Play rounds until it is enough."""
        for piece in (stage.REHEARSAL, *([stage.REAL] if self.models else [])):
            self._references[piece.name] = self._undisturbed(piece)
        while not self._is_enough():
            settings, grace_s = self._draw_cluster()
            with VirtualCluster(settings=settings, grace_s=grace_s) as cluster:
                self._log.tell("cluster", settings=settings, grace_s=grace_s)
                for _ in range(ROUNDS_ON_A_CLUSTER):
                    if self._is_enough() or not self._play_one(cluster):
                        break
        return self.tally

    @property
    def passed_s(self) -> float:
        """Since the campaign began."""
        return time.monotonic() - self._began_s

    def _is_enough(self) -> bool:
        enough = self.faults is not None and self.tally.faults.total() >= self.faults
        return enough or self.passed_s >= self.seconds

    def _draw_cluster(self) -> tuple[dict[str, str], int]:
        """With and without preempt_send_user_signal, with long grace and little."""
        told = self._random.random() < 0.5
        settings = {"KillWait": "3", "SlurmdTimeout": "6", "BatchStartTimeout": "5"}
        settings["SlurmctldParameters"] = "preempt_send_user_signal" if told else "enable_configless"
        return settings, self._random.choice((1, 4, 15))

    def _undisturbed(self, piece: stage.Piece) -> stage.Undisturbed:
        folder = self.folder / f"undisturbed {piece.name}".replace(" ", "-")
        folder.mkdir()
        return stage.undisturbed(piece, Hpcq(python=_CORE, folder=folder), _pythons(piece))

    def _play_one(self, cluster: VirtualCluster) -> bool:
        """Play a round; False where the cluster had better be given up."""
        piece = stage.REAL if self._random.random() < self.models else stage.REHEARSAL
        number = self.tally.rounds + 1
        folder = self.folder / f"round-{number:04d}"
        (folder / "journal").mkdir(parents=True)
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311 - a seed is to be repeated
        plan = self._draw_plan(piece, folder, chance)
        self._log.tell("round", number=number, piece=piece.name, plan=plan)
        began_s = time.monotonic()
        bag = self._unattended_bag if plan.is_unattended else self._bag
        with contextlib.ExitStack() as stack:
            scene = self._scene(piece, folder, chance, cluster, stack)
            verdict = Round(
                scene=scene,
                plan=plan,
                manifest=folder / "manifest.toml",
                journal=folder / "journal",
                reference=self._references[piece.name],
                draw=bag.draw,
                put_back=bag.put_back,
            ).play()
            if verdict.violations:
                shutil.copytree(cluster.folder / "log", folder / "slurm")
            if verdict.violations and scene.small_disk:
                shutil.copytree(scene.small_disk, folder / "runs-as-they-were", symlinks=True)
        self._conclude(number, verdict, plan, time.monotonic() - began_s)
        if not verdict.violations:
            shutil.rmtree(folder)
        return not verdict.violations

    def _conclude(self, number: int, verdict: Verdict, plan: Plan, seconds: float) -> None:
        self.tally.add(verdict, plan.request_s)
        self._log.tell("verdict", number=number, seconds=round(seconds, 1), verdict=verdict)
        sys.stdout.write(
            f"round {number}: {sum(verdict.faults.values())} faults in {seconds:.0f} s, resumed {verdict.helps} times"
            f"{''.join(f'{os.linesep}  VIOLATION {item}' for item in verdict.violations)}\n"
        )
        sys.stdout.flush()

    def _draw_plan(self, piece: stage.Piece, folder: Path, chance: random.Random) -> Plan:
        """Draw a round, and write its manifest."""
        shards = chance.randint(1, 3) if piece.is_real else chance.randint(3, 7)
        unit_s = chance.uniform(6.0, 24.0)
        request_s = round(unit_s * shards / stage.REQUESTS_OF_A_VARIANT, 4)
        text = f"shards = {shards}\nflush_interval_s = {stage.FLUSH_INTERVAL_S}\n"
        text += "" if piece.is_real else f"synthetic = {{ request_seconds = {request_s} }}\n"
        (folder / "manifest.toml").write_text(piece.manifest + text)
        is_unattended = chance.random() < 0.5 and not all(KINDS[name].with_user for name in self.kinds)
        late = not is_unattended and chance.random() < 0.5 and set(LATE) <= set(self.kinds)
        most = chance.randint(4, 10) if piece.is_real else chance.randint(15, 60)
        return Plan(
            faults=most if self.faults is None else min(most, self.faults - self.tally.faults.total()),
            interval_s=5.0 if piece.is_real else 0.8,
            is_unattended=is_unattended,
            overrides=(f"cluster.profile={folder / 'profile.toml'}",),
            request_s=None if piece.is_real else request_s,
            late_damage=KINDS[chance.choice(LATE)] if late else None,
            kill_submit="SIGKILL command" in self.kinds and chance.random() < 0.3,
            patience_s=self.patience_s * (3 if piece.is_real else 1),
        )

    def _scene(
        self,
        piece: stage.Piece,
        folder: Path,
        chance: random.Random,
        cluster: VirtualCluster,
        stack: contextlib.ExitStack,
    ) -> Scene:
        """Set a round up: its profile, its clock, its disk."""
        clocked = stage.clocked_python(folder, _CORE) if not piece.is_real and chance.random() < 0.5 else None
        pythons = {**_pythons(piece), **({"core": clocked[0]} if clocked else {})}
        stage.write_profile(folder, pythons, {} if piece.is_real else stage.rehearsal_variables(folder / "journal"))
        wants_disk = self._can_mount and "full disk" in self.kinds and chance.random() < 0.5
        return Scene(
            cluster=cluster,
            hpcq=Hpcq(python=_CORE, folder=folder),
            layout=RunLayout(
                name=stage.RUN, runs=folder / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs"
            ),
            random=chance,
            tell=partial(self._log.tell, round=folder.name),
            small_disk=stack.enter_context(stage.small_disk(folder / "runs")) if wants_disk else None,
            clock=clocked[1] if clocked else None,
        )


def _pythons(piece: stage.Piece) -> dict[str, Path]:
    """The interpreters that the units of `piece` need."""
    return {"core": _CORE, **({"transformers": environments.interpreter("transformers")} if piece.is_real else {})}
