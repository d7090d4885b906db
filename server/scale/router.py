"""The choice of a replica for each request."""

import asyncio
from collections import Counter
from collections.abc import Sequence

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica


class FewestOpen(FIFOMixin, RequestRouter):
    """Hands each request to the replica with the fewest open ones, whichever machine it is on.

    Ray's own router compares two replicas of the machine that it runs on, by numbers that come late: of a burst, one
    replica may get three requests and another none. A second picture in a queue costs seconds, another machine
    milliseconds.
    """

    def initialize_state(self) -> None:
        """Begin without requests."""
        self._open: Counter[ReplicaID] = Counter()
        self._turn = 0

    async def choose_replicas(
        self,
        candidate_replicas: Sequence[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> Sequence[Sequence[RunningReplica]]:
        """Return all replicas, the one to be asked first in front.

        That has the fewest open requests of this proxy; of several, the fewest that Ray knows of; of those, each has
        its turn.
        """
        self._turn = (self._turn + 1) % len(candidate_replicas)
        in_turn = [*candidate_replicas[self._turn :], *candidate_replicas[: self._turn]]
        ranked = sorted(in_turn, key=self._count_open)
        self._expect(ranked[0].replica_id)
        return [[replica] for replica in ranked]

    def _count_open(self, replica: RunningReplica) -> tuple[int, int]:
        known = self.replica_queue_len_cache.get(replica.replica_id)
        return self._open[replica.replica_id], known or 0

    def _expect(self, replica_id: ReplicaID) -> None:
        """Count a request until it is sent, in the event loop's next turn; or never, if its client has hung up."""
        self._open[replica_id] += 1
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: loop.call_soon(self._open.subtract, [replica_id]))

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Count a request that is sent."""
        super().on_send_request(replica_id)
        self._open[replica_id] += 1

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a request that has ended in any way."""
        self._open[replica_id] -= 1
