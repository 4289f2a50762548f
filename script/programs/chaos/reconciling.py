"""After a run, `messages reconcile` must find exactly the lost messages, and send them again."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

from script.environment import ROOT
from script.programs.chaos.world import World
from script.services.owned import ServiceError

#: Seconds that the command may take.
PATIENCE = 120.0
#: How often it is run at least: a queue must be seen empty twice before anything is called lost; and at most, until
#: nothing is.
LOOKS = 2
TIMES = 5

#: A message at a consumer: (consumer, message id).
Key = tuple[str, str]


@dataclass
class Reconciled:
    """The messages that were lost, and those that the command named."""

    lost: set[Key]
    #: The messages that the command called lost.
    named: set[Key] = field(default_factory=set)
    #: How often it was run.
    runs: int = 0

    @property
    def needed(self) -> list[str]:
        """The lost messages, in words."""
        return [f"{message} at {consumer}" for consumer, message in sorted(self.lost)]

    @property
    def wrong(self) -> list[str]:
        """The messages that the command named without reason, or missed."""
        unfounded = [f"{message} at {consumer}: not lost" for consumer, message in sorted(self.named - self.lost)]
        missed = [f"{message} at {consumer}: not named" for consumer, message in sorted(self.lost - self.named)]
        return unfounded + missed


def reconcile(world: World, so_far: Reconciled) -> None:
    """Run `messages reconcile --repair` once. Raises `ServiceError` if it cannot do its work."""
    done = subprocess.run(
        [sys.executable, "manage.py", "messages", "reconcile", "--repair", "--json"],
        cwd=ROOT,
        env=dict(world.environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    # 6: something is wrong that it cannot send again. The certificate judges that.
    if done.returncode not in {0, 6}:
        raise ServiceError(f"messages reconcile ended with {done.returncode}: {done.stderr[-2000:]}", exit_code=1)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    so_far.named |= {(each["consumer"], each["message_id"]) for each in found if each["trouble"] == "lost"}
    so_far.runs += 1
