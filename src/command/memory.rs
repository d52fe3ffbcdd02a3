//! How much memory this process takes, as Linux tells it; elsewhere nothing is known.

use std::sync::atomic::{AtomicU64, Ordering};

/// Memory of the process in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident now.
    pub resident: u64,
    /// Of that, pages of files.
    pub of_files: u64,
    /// Most resident since the start, or since [`forget_peak`].
    pub peak: u64,
}

/// Memory of the process now.
pub fn usage() -> Option<Usage> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<Usage> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    };
    Some(Usage { resident: field("VmRSS:")?, of_files: field("RssFile:")?, peak: field("VmHWM:")? })
}

/// The greatest peak before it was last forgotten.
static EARLIER: AtomicU64 = AtomicU64::new(0);

/// Most memory of the process since its start.
pub fn peak() -> Option<u64> {
    usage().map(|usage| usage.peak.max(EARLIER.load(Ordering::Relaxed)))
}

/// Lets the peak count from now on. Whether that worked.
fn forget_peak() -> bool {
    EARLIER.fetch_max(usage().map_or(0, |usage| usage.peak), Ordering::Relaxed);
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// What the process grew by while `body` ran: until its end, and at its peak. Pages of files are left out:
/// they are only looked at.
pub fn growth<T>(body: impl FnOnce() -> T) -> (T, Option<(u64, u64)>) {
    let before = usage();
    let is_fresh = forget_peak();
    let result = body();
    let own = |usage: Usage| usage.resident.saturating_sub(usage.of_files);
    let grown = before.zip(usage()).filter(|_| is_fresh).map(|(before, after)| {
        let files = after.of_files.saturating_sub(before.of_files);
        let peak = after.peak.saturating_sub(before.resident).saturating_sub(files);
        (own(after).saturating_sub(own(before)), peak)
    });
    (result, grown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_process_is_read() {
        let status = "Name:\toptix\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\nRssFile:\t  512 kB\n";
        let usage = Usage { resident: 1 << 20, of_files: 512 << 10, peak: 2 << 20 };
        assert_eq!(parse(status), Some(usage));
        assert_eq!(parse("Name:\toptix\n"), None);
    }

    #[test]
    fn what_is_allocated_shows() {
        let (kept, grown) = growth(|| vec![1u8; 32 << 20]);
        // Not on every system.
        if let Some((end, peak)) = grown {
            assert!(end >= 24 << 20 && peak >= 24 << 20, "{end} {peak}");
        }
        assert_eq!(kept.len(), 32 << 20);
    }
}
