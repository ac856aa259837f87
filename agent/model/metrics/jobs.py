"""What QEMU does in the background: mirrors, backups, commits, image creation, snapshots."""

from agent.model.family import FLAG, GAUGE, STATE, TEXT, Family, Field

JOB = Family(
    "job",
    "query-block-jobs and query-jobs",
    "A job that runs or has not been dismissed. Progress is in bytes for block jobs, in a unit of its own for others.",
    ("job", "type"),
    (
        Field("status", "status", STATE, "Where it stands: running, ready, paused, concluded, ... (QEMU 2.12)."),
        Field("current-progress", "progress", GAUGE, "How much is done."),
        Field(
            "total-progress",
            "goal",
            GAUGE,
            "How much there is to do, as far as is known; it grows with the guest's writes.",
        ),
        Field("ratio", "progress_ratio", GAUGE, "The share that is done."),
        Field("speed", "speed_limit_bytes_per_second", GAUGE, "The limit that was set; 0 is none. Block jobs only."),
        Field("rate", "progress_per_second", GAUGE, "How much was done each second since the last poll."),
        Field("left", "remaining_seconds", GAUGE, "How long it takes at that rate; absent while it does not advance."),
        Field("busy", "busy", FLAG, "Whether it works at this moment. Block jobs only."),
        Field("paused", "paused", FLAG, "Whether somebody, or an I/O error, paused it. Block jobs only."),
        Field("ready", "ready", FLAG, "Whether it waits to be completed. Block jobs only."),
        Field(
            "actively-synced", "actively_synced", FLAG, "Whether a mirror copies each write as it is made (QEMU 8.2)."
        ),
        Field("io-status", "io_status", STATE, "Whether it met an I/O error: ok, failed, nospace. Block jobs only."),
        Field("auto-finalize", "auto_finalize", FLAG, "Whether it is finalized by itself (QEMU 2.12)."),
        Field("auto-dismiss", "auto_dismiss", FLAG, "Whether it is gone by itself at its end (QEMU 2.12)."),
        Field("error", "error", TEXT, "Why it failed, in QEMU's words."),
    ),
)
