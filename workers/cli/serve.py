"""`muster serve`: health and metrics over HTTP, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import platform
from threading import Thread

from workers.alerting.alerts import Alerts
from workers.alerting.rules import parsed
from workers.alerting.webhook import Webhook
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
    webhook = _webhook(settings)
    alerts = Alerts(parsed(settings.alerts.rules), [webhook.tell] if webhook is not None else [])
    # The server of the store need not be there: to say so is what this process is for.
    with until_stopped(stop), HealthServer(settings, more_samples=alerts.samples) as server:
        thread = Thread(target=server.serve_forever, name="serve", daemon=True)
        thread.start()
        heeding = [alerts.heed, ClosesOnCritical(settings).heed]
        attending = Attending(server.health, heeding, every_s=settings.serve.look_every_s)
        attending.start()
        printing.say(f"serves {server.url}/health")
        stop.wait()
        attending.stop()
        if webhook is not None:
            webhook.stop()
        server.shutdown()
        thread.join()
    return 0


def _webhook(settings: Settings) -> Webhook | None:
    if settings.alerts.webhook is None:
        return None
    about = {"environment": settings.environment, "namespace": settings.namespace, "from": platform.node()}
    token, retry_for_s = settings.alerts.token, settings.alerts.retry_for_s
    webhook = Webhook(settings.alerts.webhook, token=token, retry_for_s=retry_for_s, about=about)
    webhook.start()
    return webhook
