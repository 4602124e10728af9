"""The whole of Muster on one host: an embedded server with a store, and worker processes, all kept alive.

The order of stopping matters: workers first, so that they finish what is in flight while the server still answers.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from domain.log import SessionLog, connect, create_store
from workers.embedded import EmbeddedServer
from workers.fleet import WorkerSupervisor, worker_supervisor
from workers.settings import RedisSettings, Settings
from workers.supervisor import Supervisor

#: How long the server may take to write out what it has, in seconds.
SERVER_STOP_S = 8.0


class Stack:
    """An embedded server and its workers. `settings` are the stack's own, with the server's address in them.

    `server_ended` is called when somebody told the server to shut down: it is not started again then.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        settings: Settings,
        *,
        log: Callable[[str], None],
        workers: int | None = None,
        server_ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.server = server
        self.settings = settings
        self._log = log
        self._count = workers
        self._server_ended = server_ended
        self._keeper: Supervisor | None = None
        self.workers: WorkerSupervisor | None = None
        self._stopped: bool | None = None

    def start(self) -> None:
        """Starts the server, makes the store unless there is one, starts the workers."""
        self.server.start()
        self.settings = self.own(self.settings)
        client = connect(self.settings.connecting)
        try:
            create_store(
                client,
                environment=self.settings.environment,
                namespace=self.settings.namespace,
                partitions=self.settings.partitions,
            )
        finally:
            client.close()
        self._keeper = Supervisor(
            {"server": self.server.launch},
            log=self._log,
            stay_down={0: "it was told to shut down"},
            went_down=self._server_ended,
        )
        self._keeper.start()
        self.workers = worker_supervisor(self.settings, count=self._count, log=self._log)
        self.workers.start()

    @property
    def url(self) -> str:
        return self.server.url

    def own(self, settings: Settings) -> Settings:
        """Settings with the address of this server, which was started, in them."""
        # It has no users and no TLS, whatever the settings say about another one.
        asked = settings.redis
        redis_settings = RedisSettings(self.server.url, asked.timeout_s, asked.retry_for_s)
        jobs = structs.replace(settings.jobs, url=f"{self.server.url.rpartition('/')[0]}/1")
        return structs.replace(settings, redis=redis_settings, jobs=jobs)

    def take(self, settings: Settings) -> None:
        """Has the workers take these settings, the stack's own, from now on."""
        self.settings = settings
        if self.workers is not None:
            self.workers.take(settings)

    def open_log(self) -> SessionLog:
        """The log of the stack's store."""
        return SessionLog.open(
            self.settings.connecting,
            environment=self.settings.environment,
            namespace=self.settings.namespace,
            archive=self.settings.archive.opened(),
        )

    def release_workers(self) -> None:
        """Starts workers again that ended because the fleet was stopped."""
        if self.workers is not None:
            self.workers.release()

    def kill_workers(self) -> None:
        """Ends the workers at once."""
        if self.workers is not None:
            self.workers.kill()

    def stop(self) -> bool:
        """Drains the workers, then stops the server; True if all ended cleanly. A second call answers the same."""
        if self._stopped is None:
            self._stopped = False
            clean = self.workers is None or self.workers.stop(self.settings.worker.drain_s)
            if self._keeper is not None:
                clean = self._keeper.stop(SERVER_STOP_S) and clean
            self.server.stop(SERVER_STOP_S)
            self._stopped = clean
        return self._stopped
