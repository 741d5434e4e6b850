//! Flags about the audit log: kube-apiserver's own.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{kept, seconds};

/// Whether requests wait for events: not at all, until each is told, or so that none goes on without.
const MODES: [&str; 3] = ["batch", "blocking", "blocking-strict"];

/// What is recorded of requests, where, and how.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    /// Which requests are recorded (audit.k8s.io/v1 Policy).
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where they are recorded; `-` is the daemon's output.
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Days after which old audit logs are removed; 0 is never [default: 366].
    #[arg(long, value_name = "DAYS")]
    pub audit_log_maxage: Option<u64>,
    /// How many old audit logs are kept; 0 is all [default: 100].
    #[arg(long, value_name = "N")]
    pub audit_log_maxbackup: Option<usize>,
    /// Megabytes of an audit log before the next is begun [default: 100].
    #[arg(long, value_name = "MB")]
    pub audit_log_maxsize: Option<u64>,
    /// Compress old audit logs with gzip.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_log_compress: Option<bool>,
    /// Whether requests wait until they are recorded [default: blocking].
    #[arg(long, value_name = "MODE", value_parser = MODES)]
    pub audit_log_mode: Option<String>,
    /// How many events wait for the log in the mode batch [default: 10000].
    #[arg(long, value_name = "N")]
    pub audit_log_batch_buffer_size: Option<usize>,
    /// How many events are written to it at once [default: 1].
    #[arg(long, value_name = "N")]
    pub audit_log_batch_max_size: Option<usize>,
    /// How many seconds an event waits for others [default: 0].
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub audit_log_batch_max_wait: Option<u64>,
    /// Write them at a pace [default: false].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_log_batch_throttle_enable: Option<bool>,
    /// Batches a second then.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub audit_log_batch_throttle_qps: Option<String>,
    /// Batches at once after a pause then.
    #[arg(long, value_name = "N")]
    pub audit_log_batch_throttle_burst: Option<u32>,
    /// Take requests' and responses' objects away from the log's events that are too large.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_log_truncate_enabled: Option<bool>,
    /// Bytes of a batch of them at most then [default: 10485760].
    #[arg(long, value_name = "BYTES")]
    pub audit_log_truncate_max_batch_size: Option<u64>,
    /// Bytes of an event at most then [default: 102400].
    #[arg(long, value_name = "BYTES")]
    pub audit_log_truncate_max_event_size: Option<u64>,
    /// Another server that is told what is recorded (a kubeconfig).
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Whether requests wait until the other server is told [default: batch].
    #[arg(long, value_name = "MODE", value_parser = MODES)]
    pub audit_webhook_mode: Option<String>,
    /// How many events wait for it at most [default: 10000].
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_buffer_size: Option<usize>,
    /// How many events it is told at once [default: 400].
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_max_size: Option<usize>,
    /// How many seconds an event waits for others [default: 30].
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub audit_webhook_batch_max_wait: Option<u64>,
    /// Tell it at a pace [default: true].
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_webhook_batch_throttle_enable: Option<bool>,
    /// Batches a second then [default: 10].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub audit_webhook_batch_throttle_qps: Option<String>,
    /// Batches at once after a pause then [default: 15].
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_throttle_burst: Option<u32>,
    /// Take requests' and responses' objects away from its events that are too large.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_webhook_truncate_enabled: Option<bool>,
    /// Bytes of a batch of them at most then [default: 10485760].
    #[arg(long, value_name = "BYTES")]
    pub audit_webhook_truncate_max_batch_size: Option<u64>,
    /// Bytes of an event at most then [default: 102400].
    #[arg(long, value_name = "BYTES")]
    pub audit_webhook_truncate_max_event_size: Option<u64>,
    /// How many seconds pass before it is told again after a failure [default: 10].
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub audit_webhook_initial_backoff: Option<u64>,
}

/// A number above nothing, such as a rate.
fn positive(text: &str) -> Result<String, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.map(|_| text.to_owned()).ok_or_else(|| format!("{text:?} is not a positive number"))
}

impl Audit {
    /// These flags, and where they say nothing, those of the last time.
    #[must_use]
    pub fn or(&self, last: &Self) -> Self {
        let (now, last) = (self.clone(), last.clone());
        Self {
            audit_policy_file: kept(
                now.audit_policy_file.as_ref(),
                last.audit_policy_file.as_ref(),
            ),
            audit_log_path: kept(now.audit_log_path.as_ref(), last.audit_log_path.as_ref()),
            audit_log_maxage: now.audit_log_maxage.or(last.audit_log_maxage),
            audit_log_maxbackup: now.audit_log_maxbackup.or(last.audit_log_maxbackup),
            audit_log_maxsize: now.audit_log_maxsize.or(last.audit_log_maxsize),
            audit_log_compress: now.audit_log_compress.or(last.audit_log_compress),
            audit_webhook_config_file: kept(
                now.audit_webhook_config_file.as_ref(),
                last.audit_webhook_config_file.as_ref(),
            ),
            audit_webhook_initial_backoff: now
                .audit_webhook_initial_backoff
                .or(last.audit_webhook_initial_backoff),
            audit_log_mode: now.audit_log_mode.or(last.audit_log_mode),
            audit_log_batch_buffer_size: now
                .audit_log_batch_buffer_size
                .or(last.audit_log_batch_buffer_size),
            audit_log_batch_max_size: now
                .audit_log_batch_max_size
                .or(last.audit_log_batch_max_size),
            audit_log_batch_max_wait: now
                .audit_log_batch_max_wait
                .or(last.audit_log_batch_max_wait),
            audit_log_batch_throttle_enable: now
                .audit_log_batch_throttle_enable
                .or(last.audit_log_batch_throttle_enable),
            audit_log_batch_throttle_qps: now
                .audit_log_batch_throttle_qps
                .or(last.audit_log_batch_throttle_qps),
            audit_log_batch_throttle_burst: now
                .audit_log_batch_throttle_burst
                .or(last.audit_log_batch_throttle_burst),
            audit_log_truncate_enabled: now
                .audit_log_truncate_enabled
                .or(last.audit_log_truncate_enabled),
            audit_log_truncate_max_batch_size: now
                .audit_log_truncate_max_batch_size
                .or(last.audit_log_truncate_max_batch_size),
            audit_log_truncate_max_event_size: now
                .audit_log_truncate_max_event_size
                .or(last.audit_log_truncate_max_event_size),
            audit_webhook_mode: now.audit_webhook_mode.or(last.audit_webhook_mode),
            audit_webhook_batch_buffer_size: now
                .audit_webhook_batch_buffer_size
                .or(last.audit_webhook_batch_buffer_size),
            audit_webhook_batch_max_size: now
                .audit_webhook_batch_max_size
                .or(last.audit_webhook_batch_max_size),
            audit_webhook_batch_max_wait: now
                .audit_webhook_batch_max_wait
                .or(last.audit_webhook_batch_max_wait),
            audit_webhook_batch_throttle_enable: now
                .audit_webhook_batch_throttle_enable
                .or(last.audit_webhook_batch_throttle_enable),
            audit_webhook_batch_throttle_qps: now
                .audit_webhook_batch_throttle_qps
                .or(last.audit_webhook_batch_throttle_qps),
            audit_webhook_batch_throttle_burst: now
                .audit_webhook_batch_throttle_burst
                .or(last.audit_webhook_batch_throttle_burst),
            audit_webhook_truncate_enabled: now
                .audit_webhook_truncate_enabled
                .or(last.audit_webhook_truncate_enabled),
            audit_webhook_truncate_max_batch_size: now
                .audit_webhook_truncate_max_batch_size
                .or(last.audit_webhook_truncate_max_batch_size),
            audit_webhook_truncate_max_event_size: now
                .audit_webhook_truncate_max_event_size
                .or(last.audit_webhook_truncate_max_event_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_numbers() {
        for (text, sound) in
            [("10", true), ("0.5", true), ("0", false), ("-1", false), ("inf", false), ("x", false)]
        {
            assert_eq!(positive(text).is_ok(), sound, "{text}");
        }
    }
}
