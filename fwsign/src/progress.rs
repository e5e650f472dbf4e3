//! A progress bar on standard error: on a terminal only, so that logs stay readable.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const WIDTH: u64 = 30;
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of a known total that are done. The line is cleared when it is dropped.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    done: u64,
    drawn: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins at nothing of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            done: 0,
            drawn: None,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// `bytes` more are done.
    pub fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        if self.terminal && self.drawn.is_none_or(|drawn| drawn.elapsed() >= INTERVAL) {
            self.drawn = Some(Instant::now());
            eprint!("\r{}", line(self.done, self.total));
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(done: u64, total: u64) -> String {
    let part = |scale: u64| u128::from(done.min(total)) * u128::from(scale) / u128::from(total.max(1));
    let filled = usize::try_from(part(WIDTH)).unwrap_or(0);
    let mib = |bytes: u64| format!("{}.{}", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    format!(
        "[{:<width$}] {:>3} %  {} of {} MiB",
        "=".repeat(filled),
        part(100),
        mib(done),
        mib(total),
        width = WIDTH as usize
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line(0, 0), format!("[{}]   0 %  0.0 of 0.0 MiB", " ".repeat(30)));
        let half = format!("[{}{}]  50 %  1.5 of 3.0 MiB", "=".repeat(15), " ".repeat(15));
        assert_eq!(line(3 << 19, 3 << 20), half);
        assert!(line(u64::MAX, u64::MAX).contains("100 %"));
        assert!(line(5, 4).contains("100 %"));
    }
}
