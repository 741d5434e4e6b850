//! The API server's audit log, as the flags want it.

use std::path::PathBuf;
use std::time::Duration;

use apiserver::{
    AuditBatchOptions, AuditMode, AuditOptions, AuditThrottle, AuditTruncateOptions,
    AuditWebhookOptions,
};
use cli::access::audit::Audit;

/// The options for these flags; what they do not say is as kube-apiserver has it.
pub fn options(flags: &Audit) -> AuditOptions {
    let usual = AuditOptions::default();
    AuditOptions {
        policy: flags.audit_policy_file.clone(),
        path: flags.audit_log_path.clone(),
        max_age_days: flags.audit_log_maxage.unwrap_or(usual.max_age_days),
        max_backups: flags.audit_log_maxbackup.unwrap_or(usual.max_backups),
        max_size_megabytes: flags.audit_log_maxsize.unwrap_or(usual.max_size_megabytes),
        compress: flags.audit_log_compress.unwrap_or(usual.compress),
        mode: mode(flags.audit_log_mode.as_deref(), usual.mode),
        batch: AuditBatchOptions {
            buffer_size: flags.audit_log_batch_buffer_size.unwrap_or(usual.batch.buffer_size),
            max_size: flags.audit_log_batch_max_size.unwrap_or(usual.batch.max_size),
            max_wait: seconds(flags.audit_log_batch_max_wait, usual.batch.max_wait),
            throttle: throttle(
                flags.audit_log_batch_throttle_enable,
                flags.audit_log_batch_throttle_qps.as_deref(),
                flags.audit_log_batch_throttle_burst,
                usual.batch.throttle,
            ),
        },
        truncate: truncate(
            flags.audit_log_truncate_enabled,
            flags.audit_log_truncate_max_event_size,
            flags.audit_log_truncate_max_batch_size,
        ),
        webhook: flags.audit_webhook_config_file.clone().map(|file| webhook(file, flags)),
    }
}

fn webhook(config_file: PathBuf, flags: &Audit) -> AuditWebhookOptions {
    let usual = AuditWebhookOptions::new(config_file);
    AuditWebhookOptions {
        mode: mode(flags.audit_webhook_mode.as_deref(), usual.mode),
        batch: AuditBatchOptions {
            buffer_size: flags.audit_webhook_batch_buffer_size.unwrap_or(usual.batch.buffer_size),
            max_size: flags.audit_webhook_batch_max_size.unwrap_or(usual.batch.max_size),
            max_wait: seconds(flags.audit_webhook_batch_max_wait, usual.batch.max_wait),
            throttle: throttle(
                flags.audit_webhook_batch_throttle_enable,
                flags.audit_webhook_batch_throttle_qps.as_deref(),
                flags.audit_webhook_batch_throttle_burst,
                usual.batch.throttle,
            ),
        },
        truncate: truncate(
            flags.audit_webhook_truncate_enabled,
            flags.audit_webhook_truncate_max_event_size,
            flags.audit_webhook_truncate_max_batch_size,
        ),
        initial_backoff: seconds(flags.audit_webhook_initial_backoff, usual.initial_backoff),
        ..usual
    }
}

fn seconds(given: Option<u64>, usual: Duration) -> Duration {
    given.map_or(usual, Duration::from_secs)
}

fn mode(given: Option<&str>, usual: AuditMode) -> AuditMode {
    match given {
        Some("batch") => AuditMode::Batch,
        Some("blocking") => AuditMode::Blocking,
        Some("blocking-strict") => AuditMode::BlockingStrict,
        _ => usual,
    }
}

fn throttle(
    enable: Option<bool>,
    per_second: Option<&str>,
    burst: Option<u32>,
    usual: Option<AuditThrottle>,
) -> Option<AuditThrottle> {
    if !enable.unwrap_or(usual.is_some()) {
        return None;
    }
    // The log has no usual pace: one a second, one at once.
    let usual = usual.unwrap_or(AuditThrottle { per_second: 1.0, burst: 1.0 });
    Some(AuditThrottle {
        per_second: per_second.and_then(|text| text.parse().ok()).unwrap_or(usual.per_second),
        burst: burst.map_or(usual.burst, f64::from).max(1.0),
    })
}

fn truncate(
    enabled: Option<bool>,
    max_event_size: Option<u64>,
    max_batch_size: Option<u64>,
) -> Option<AuditTruncateOptions> {
    let usual = AuditTruncateOptions::default();
    enabled.unwrap_or_default().then(|| AuditTruncateOptions {
        max_event_size: max_event_size.unwrap_or(usual.max_event_size),
        max_batch_size: max_batch_size.unwrap_or(usual.max_batch_size),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_what_is_usual() {
        let usual = options(&Audit::default());
        assert_eq!(
            (usual.mode, usual.batch.max_size, usual.batch.throttle),
            (AuditMode::Blocking, 1, None)
        );
        assert_eq!((usual.truncate, usual.max_age_days, usual.max_backups), (None, 366, 100));
        let flags = Audit {
            audit_log_mode: Some("batch".into()),
            audit_log_truncate_enabled: Some(true),
            audit_log_truncate_max_event_size: Some(1000),
            audit_webhook_config_file: Some("/k".into()),
            audit_webhook_mode: Some("blocking-strict".into()),
            audit_webhook_batch_throttle_qps: Some("0.5".into()),
            audit_webhook_batch_max_size: Some(7),
            ..Audit::default()
        };
        let options = options(&flags);
        assert_eq!(options.mode, AuditMode::Batch);
        assert_eq!(
            options.truncate,
            Some(AuditTruncateOptions { max_event_size: 1000, max_batch_size: 10 << 20 })
        );
        let webhook = options.webhook.expect("one");
        assert_eq!((webhook.mode, webhook.batch.max_size), (AuditMode::BlockingStrict, 7));
        let throttle = AuditThrottle { per_second: 0.5, burst: 15.0 };
        assert_eq!((webhook.batch.throttle, webhook.truncate), (Some(throttle), None));
    }
}
