"""Background jobs of QEMU: mirrors, backups, commits, image creation, snapshots."""

from agent.model.family import FLAG, GAUGE, STATE, TEXT, Family, Field

JOB = Family(
    "job",
    "query-block-jobs and query-jobs",
    "A job that runs, or that has ended and is not dismissed yet. The unit of its progress is bytes for block jobs, and depends on the "
    "type for other jobs.",
    ("job", "type"),
    (
        Field("status", "status", STATE, "Status: running, ready, paused, concluded, ... (QEMU 2.12)."),
        Field("current-progress", "progress", GAUGE, "Amount of work that is done."),
        Field(
            "total-progress",
            "progress_target",
            GAUGE,
            "Expected value of `progress` at the end of the job; writes by the guest increase it.",
        ),
        Field("ratio", "progress_ratio", GAUGE, "Share of the job's work that is done."),
        Field(
            "speed",
            "speed_limit_bytes_per_second",
            GAUGE,
            "Speed limit in bytes per second; 0 without a limit. Block jobs only.",
        ),
        Field("rate", "progress_per_second", GAUGE, "Increase of `progress` per second since the last poll."),
        Field(
            "left",
            "remaining_seconds",
            GAUGE,
            "Time in seconds until the job ends, at the speed since the last poll; absent while the job makes no progress.",
        ),
        Field("busy", "busy", FLAG, "Whether the job is working at this moment. Block jobs only."),
        Field("paused", "paused", FLAG, "Whether a client or an I/O error paused the job. Block jobs only."),
        Field("ready", "ready", FLAG, "Whether the job is ready to be completed. Block jobs only."),
        Field(
            "actively-synced",
            "actively_synced",
            FLAG,
            "Whether a mirror copies each write of the guest before the write completes (QEMU 8.2).",
        ),
        Field("io-status", "io_status", STATE, "I/O status: ok, failed, nospace. Block jobs only."),
        Field("auto-finalize", "auto_finalize", FLAG, "Whether the job finalizes itself (QEMU 2.12)."),
        Field("auto-dismiss", "auto_dismiss", FLAG, "Whether the job dismisses itself at its end (QEMU 2.12)."),
        Field("error", "error", TEXT, "Error message from QEMU if the job failed."),
    ),
)
