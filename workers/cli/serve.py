"""`muster serve`: health and metrics over HTTP, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
from threading import Thread

from workers.attending import Attending
from workers.cli import arguments, printing
from workers.closing import ClosesOnCritical
from workers.fleet import until_stopped
from workers.serving import HealthServer
from workers.settings import Settings
from workers.stopping import Stop


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    parser.add_argument(
        "--host",
        dest="serve_host",
        metavar="HOST",
        help="where to listen (MUSTER_SERVE__HOST); beyond loopback a token is needed",
    )
    parser.add_argument(
        "--port",
        dest="serve_port",
        metavar="PORT",
        type=int,
        help="on which port (MUSTER_SERVE__PORT); 0: any that is free",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    stop = Stop()
    # The server of the store need not be there: to say so is what this process is for.
    with until_stopped(stop), HealthServer(settings) as server:
        thread = Thread(target=server.serve_forever, name="serve", daemon=True)
        thread.start()
        attending = Attending(server.health, [ClosesOnCritical(settings).heed], every_s=settings.serve.look_every_s)
        attending.start()
        printing.say(f"serves {server.url}/health")
        stop.wait()
        attending.stop()
        server.shutdown()
        thread.join()
    return 0
