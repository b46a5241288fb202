"""Others' telemetry, fed by `orlop.observe` and by the daemon's gate: Prometheus and OpenTelemetry.

The only room that imports their libraries, which come with the extras ``metrics`` and ``tracing``; nobody
imports this room without being asked to (``orlop daemon --metrics``, ``--tracing``).
"""
