"""`muster serve`: health and metrics over HTTP, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import platform
from threading import Thread

from workers import logs
from workers.alerting.alerts import Alerts
from workers.alerting.rules import parsed
from workers.alerting.webhook import Webhook
from workers.attending import Attending
from workers.cli import arguments
from workers.closing import ClosesOnCritical
from workers.fleet import until_stopped
from workers.reloading import InForce, Reloading, name_of_process
from workers.serving import HealthServer
from workers.settings import Reading
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


def run(options: argparse.Namespace, reading: Reading) -> int:
    stop, in_force = Stop(), InForce(reading.loaded().valid())
    settings = in_force.settings
    about = {"environment": settings.environment, "namespace": settings.namespace, "from": platform.node()}
    webhook = Webhook(lambda: in_force.settings.alerts, about=about)
    alerts = Alerts(parsed(settings.alerts.rules), [webhook.tell])
    # The server of the store need not be there: to say so is what this process is for.
    say = logs.saying(settings)
    with logs.logging_as(settings), until_stopped(stop), HealthServer(settings, more_samples=alerts.samples) as server:
        in_force.tell(server.take, check=server.check)
        in_force.tell(lambda changed: alerts.take(parsed(changed.alerts.rules)))
        thread = Thread(target=server.serve_forever, name="serve", daemon=True)
        thread.start()
        webhook.start()
        heeding = [alerts.heed, ClosesOnCritical(in_force).heed]
        attending = Attending(server.health, heeding, every_s=lambda: in_force.settings.serve.look_every_s)
        attending.start()
        say(f"serves {server.url}/health")
        with Reloading(reading, in_force, who=name_of_process("serve"), say=say).running():
            stop.wait()
        attending.stop()
        webhook.stop()
        server.shutdown()
        thread.join()
    return 0
