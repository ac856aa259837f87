"""The statistics of KVM that the agent requests, by their names in Linux.

A statistic that the host's kernel or architecture does not have is absent.
"""

from agent.model.family import COUNTER, GAUGE, Family, Field, Unit

KVM = Family(
    "kvm",
    "query-stats",
    "KVM's statistics of a VM as a whole (QEMU 7.1, x86).",
    (),
    (
        Field("pages_4k", "pages_4k", GAUGE, "Number of 4 KiB pages mapped for the guest."),
        Field("pages_2m", "pages_2m", GAUGE, "Number of 2 MiB pages mapped for the guest."),
        Field("pages_1g", "pages_1g", GAUGE, "Number of 1 GiB pages mapped for the guest."),
        Field(
            "remote_tlb_flush",
            "remote_tlb_flushes_total",
            COUNTER,
            "Total number of times that KVM flushed the TLBs of all vCPUs.",
        ),
    ),
)

KVM_VCPU = Family(
    "kvm_vcpu",
    "query-stats",
    "KVM's statistics of one vCPU (QEMU 7.1; some on x86 only).",
    ("vcpu",),
    (
        Field("exits", "exits_total", COUNTER, "Total number of exits from the guest."),
        Field("io_exits", "io_exits_total", COUNTER, "Total number of exits for port I/O."),
        Field("mmio_exits", "mmio_exits_total", COUNTER, "Total number of exits for memory-mapped I/O."),
        Field("halt_exits", "halt_exits_total", COUNTER, "Total number of exits because the vCPU halted."),
        Field("signal_exits", "signal_exits_total", COUNTER, "Total number of exits to QEMU for a signal."),
        Field("irq_injections", "irq_injections_total", COUNTER, "Total number of interrupts injected into the guest."),
        Field("hypercalls", "hypercalls_total", COUNTER, "Total number of hypercalls."),
        Field(
            "insn_emulation_fail",
            "failed_emulations_total",
            COUNTER,
            "Total number of instructions that KVM could not emulate.",
        ),
        Field("pf_taken", "page_faults_total", COUNTER, "Total number of guest page faults that KVM handled."),
        Field("tlb_flush", "tlb_flushes_total", COUNTER, "Total number of TLB flushes."),
        Field(
            "halt_wait_ns",
            "halt_seconds_total",
            COUNTER,
            "Total time in seconds that the vCPU was halted.",
            Unit.NANOSECONDS,
        ),
        Field(
            "preemption_reported", "preemptions_total", COUNTER, "Total number of preemptions reported to the guest."
        ),
    ),
)
