"""What KVM counts: a short choice of its statistics, by the names that Linux gives them.

The names are the request: what is not in these tables is not asked for. A kernel or an architecture that lacks one leaves it out.
"""

from agent.model.family import COUNTER, GAUGE, Family, Field, Unit

KVM = Family(
    "kvm",
    "query-stats",
    "What KVM counts for a VM as a whole (QEMU 7.1, x86).",
    (),
    (
        Field("pages_4k", "pages_4k", GAUGE, "Pages of 4 KiB that are mapped for the guest."),
        Field("pages_2m", "pages_2m", GAUGE, "Pages of 2 MiB that are mapped for the guest."),
        Field("pages_1g", "pages_1g", GAUGE, "Pages of 1 GiB that are mapped for the guest."),
        Field("remote_tlb_flush", "remote_tlb_flushes_total", COUNTER, "TLB flushes on all vCPUs."),
    ),
)

KVM_VCPU = Family(
    "kvm_vcpu",
    "query-stats",
    "What KVM counts for one vCPU (QEMU 7.1; some on x86 only).",
    ("vcpu",),
    (
        Field("exits", "exits_total", COUNTER, "Exits from the guest."),
        Field("io_exits", "io_exits_total", COUNTER, "Exits for port I/O."),
        Field("mmio_exits", "mmio_exits_total", COUNTER, "Exits for memory-mapped I/O."),
        Field("halt_exits", "halt_exits_total", COUNTER, "Exits because the guest had nothing to do."),
        Field("signal_exits", "signal_exits_total", COUNTER, "Exits to QEMU for a signal."),
        Field("irq_injections", "irq_injections_total", COUNTER, "Interrupts given to the guest."),
        Field("hypercalls", "hypercalls_total", COUNTER, "Hypercalls of the guest."),
        Field("insn_emulation_fail", "failed_emulations_total", COUNTER, "Instructions that KVM could not emulate."),
        Field("pf_taken", "page_faults_total", COUNTER, "Page faults of the guest that KVM handled."),
        Field("tlb_flush", "tlb_flushes_total", COUNTER, "TLB flushes."),
        Field("halt_wait_ns", "halt_seconds_total", COUNTER, "Time the vCPU slept.", Unit.NANOSECONDS),
        Field(
            "preemption_reported", "preemptions_total", COUNTER, "Times the guest was told that it had been preempted."
        ),
    ),
)
