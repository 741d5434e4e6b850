//! `rootlet status`: whether the cluster runs, and how it is.

use std::path::Path;
use std::process::ExitCode;

use cli::status::{Overview, lines, overview};
use serde_json::json;

use crate::control::{self, Client};
use crate::paths::Paths;
use crate::{build, lock};

/// Carries out `rootlet status`.
pub fn status(arguments: &cli::args::Status) -> anyhow::Result<ExitCode> {
    let paths = Paths::of(&arguments.cluster.name)?;
    let as_json = arguments.output == "json";
    if let Some(pid) = control::runtime_alone(&paths) {
        if as_json {
            println!("{}", json!({"runtime": paths.name, "process": pid, "data": paths.data}));
        } else {
            println!("runtime  {} (rootlet {}, process {pid})", paths.name, build::VERSION);
            println!("data     {}", paths.data.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(daemon) = lock::holder(&paths.lock("daemon")) else {
        if as_json {
            println!("{}", json!({"cluster": paths.name, "running": false}));
        } else {
            println!("Cluster {:?} is not running.", paths.name);
        }
        return Ok(ExitCode::FAILURE);
    };
    let own = Client::new(&paths).status()?;
    let node = lock::holder(&paths.lock("node"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = runtime.block_on(async {
        let client = control::api(&paths).await?;
        anyhow::Ok(overview(&client, &own.publish).await?)
    })?;
    if build::differs(daemon) || node.is_some_and(build::differs) {
        seen.warnings.push(
            "another build of rootlet runs; `rootlet up --upgrade` moves to this one, with pods running"
                .to_owned(),
        );
    }
    let of = |pid: Option<u32>| pid.and_then(resident).unwrap_or_default();
    let memory = Memory { daemon: of(Some(daemon)), node: of(node) };
    if as_json {
        println!("{}", serde_json::to_string_pretty(&whole(&paths, &own, &memory, &seen))?);
    } else {
        print!("{}", text(&paths, &own, &memory, &seen));
    }
    Ok(ExitCode::SUCCESS)
}

/// Resident bytes of our own processes.
struct Memory {
    daemon: u64,
    node: u64,
}

fn whole(
    paths: &Paths,
    own: &control::Status,
    memory: &Memory,
    seen: &Overview,
) -> serde_json::Value {
    json!({
        "cluster": paths.name, "running": true, "version": own.version, "server": own.server,
        "uptimeSeconds": own.uptime_s, "ephemeral": own.ephemeral, "data": paths.data,
        "memoryBytes": {"daemon": memory.daemon, "node": memory.node, "pods": seen.pod_memory_bytes},
        "nodes": seen.nodes, "pods": seen.pods, "ports": seen.ports, "warnings": seen.warnings,
        "manifests": own.manifests,
    })
}

fn text(paths: &Paths, own: &control::Status, memory: &Memory, seen: &Overview) -> String {
    let kept = if own.ephemeral { ", state in memory" } else { "" };
    let mut out = format!(
        "cluster  {} (rootlet {}, up {}{kept})\n",
        paths.name,
        own.version,
        duration(own.uptime_s)
    );
    let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
    out += &format!("api      {}\n", own.server);
    let mut used = format!("{} daemon, {} node", size(memory.daemon), size(memory.node));
    if let Some(pods) = seen.pod_memory_bytes {
        used += &format!(", {} pods", size(pods));
    }
    out += &format!("memory   {used}\n");
    if let Some(kept) = &own.manifests {
        let folder = kept.folder.display();
        out += &format!("applied  {} objects from {folder}\n", kept.objects);
        for problem in &kept.problems {
            out += &format!("problem  {problem}\n");
        }
    }
    out += &format!("data     {}\n", paths.data.display());
    out + &lines(seen)
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// Resident bytes of a process (proc(5), `VmRSS`).
fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let text = text.ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_at_a_glance() {
        for (seconds, want) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172_800, "2 d")]
        {
            assert_eq!(duration(seconds), want);
        }
    }

    #[test]
    fn a_process_has_memory() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
        assert_eq!(resident(0), None);
    }
}
