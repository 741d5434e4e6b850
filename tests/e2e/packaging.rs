//! How rootlet gets onto a machine: the installer, the Debian package, the manual pages.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Answer, folder, place, run};

/// A shell script, which must succeed.
fn shell(folder: &Path, script: &str) -> String {
    let said = run(Command::new("sh").args(["-euc", script]).current_dir(folder));
    assert_eq!(said.code, Some(0), "{script}: {}{}", said.out, said.err);
    said.out
}

/// An unpacked release whose program only says its version.
fn unpacked(top: &Path) -> PathBuf {
    let release = top.join("rootlet-9.8.7-x86_64-linux");
    for folder in ["man", "completions"] {
        fs::create_dir_all(release.join(folder)).expect("it can be made");
    }
    fs::write(release.join("rootlet"), "#!/bin/sh\necho 'rootlet 9.8.7 (Kubernetes 1.36)'\n")
        .expect("it can be written");
    fs::set_permissions(release.join("rootlet"), fs::Permissions::from_mode(0o755)).expect("ours");
    for name in [
        "CHANGELOG.md",
        "man/rootlet.1",
        "completions/rootlet.bash",
        "completions/rootlet.zsh",
        "completions/rootlet.fish",
    ] {
        fs::write(release.join(name), "text\n").expect("it can be written");
    }
    release
}

fn install(top: &Path, words: &[&str]) -> Answer {
    let mut command = Command::new("sh");
    command.arg(place().join("docs/install/install.sh")).args(["--prefix", "prefix"]).args(words);
    run(command.current_dir(top).env("HOME", top))
}

#[test]
fn only_what_the_checksums_name_is_installed() {
    let top = folder();
    let top = top.path();
    unpacked(top);
    shell(
        top,
        "mkdir release && tar -czf release/rootlet-9.8.7-x86_64-linux.tar.gz rootlet-9.8.7-x86_64-linux
         cd release && sha256sum *.tar.gz > SHA256SUMS
         ssh-keygen -q -t ed25519 -N '' -f ../key && ssh-keygen -q -Y sign -f ../key -n rootlet-release SHA256SUMS
         ssh-keygen -q -t ed25519 -N '' -f ../other
         for key in key other; do echo \"rootlet $(cat ../$key.pub)\" > ../signers.$key; done",
    );
    let good = install(top, &["--from", "release", "--signers", "signers.key"]);
    assert_eq!(good.code, Some(0), "{}{}", good.out, good.err);
    assert!(good.out.contains("Installed prefix/bin/rootlet (rootlet 9.8.7"), "{}", good.out);
    for file in [
        "bin/rootlet",
        "share/man/man1/rootlet.1",
        "share/bash-completion/completions/rootlet",
        "share/zsh/site-functions/_rootlet",
        "share/fish/vendor_completions.d/rootlet.fish",
    ] {
        assert!(top.join("prefix").join(file).exists(), "{file}");
    }
    let refused = |words: &[&str], why: &str| {
        fs::remove_dir_all(top.join("prefix")).ok();
        let said = install(top, words);
        assert_eq!(said.code, Some(1), "{words:?}: {}", said.out);
        assert!(said.err.contains(why), "{words:?}: {}", said.err);
        assert!(!top.join("prefix").exists(), "{words:?}");
    };
    refused(&["--from", "release", "--signers", "signers.other"], "not signed by a key");
    refused(&["--from", "release", "--version", "1.0"], "names no single archive of version 1.0");
    refused(&["--from", "http://example.invalid"], "only https is trusted");
    refused(&["--from", "nowhere"], "no SHA256SUMS");
    shell(top, "printf x >> release/rootlet-9.8.7-x86_64-linux.tar.gz");
    refused(&["--from", "release"], "is not what SHA256SUMS says");
}

#[test]
fn a_debian_package_is_made_twice_the_same() {
    let top = folder();
    let top = top.path();
    let release = unpacked(top);
    let make = |out: &str| {
        fs::create_dir(top.join(out)).expect("it can be made");
        let mut command = Command::new(place().join(".ci/deb.sh"));
        command.arg(&release).arg(top.join(out)).env("SOURCE_DATE_EPOCH", "1700000000");
        let said = run(&mut command);
        assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
        fs::read(top.join(out).join("rootlet_9.8.7_amd64.deb")).expect("it is made")
    };
    assert!(make("one") == make("two"), "the same files give the same bytes");
    let fields = shell(top, "dpkg-deb -f one/*.deb");
    for field in ["Package: rootlet", "Version: 9.8.7", "Architecture: amd64", "Depends: uidmap"] {
        assert!(fields.lines().any(|line| line == field), "{field}: {fields}");
    }
    let files = shell(top, "dpkg-deb -c one/*.deb");
    for file in [
        "-rwxr-xr-x root/root",
        "./usr/bin/rootlet",
        "./usr/share/man/man1/rootlet.1.gz",
        "./usr/share/rootlet/apparmor",
    ] {
        assert!(files.contains(file), "{file}: {files}");
    }
}

#[test]
fn manual_pages_and_completions_are_written() {
    let top = folder();
    let top = top.path();
    let rootlet = |words: &[&str]| {
        run(Command::new(place().join("rootlet")).args(words).current_dir(top).env("NO_COLOR", "1"))
    };
    assert_eq!(rootlet(&["man", "pages"]).code, Some(0));
    let page = top.join("pages/rootlet-up.1");
    assert!(fs::read_to_string(&page).expect("it is written").contains(".SH OPTIONS"));
    if Path::new("/usr/bin/man").exists() {
        // With warnings, of which there are none.
        let mut man = Command::new("man");
        man.args(["--warnings", "-l"]).arg(&page).env("MANPAGER", "cat").current_dir(top);
        let shown = run(&mut man);
        assert_eq!((shown.code, shown.err.as_str()), (Some(0), ""), "{}", shown.out);
        assert!(shown.out.contains("--manifests DIR"), "{}", shown.out);
    }
    for name in ["bash", "zsh", "fish"] {
        assert!(rootlet(&["completions", name]).out.contains("rootlet"), "{name}");
    }
    let wrong = rootlet(&["stauts"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.out);
    assert!(wrong.err.contains("status"), "the right word is suggested: {}", wrong.err);
    assert!(!wrong.err.contains('\u{1b}'), "NO_COLOR is honoured: {:?}", wrong.err);
    for (words, meant) in [
        (&["creat"][..], "rootlet kubectl create …"),
        (&["-q", "scale", "x"], "rootlet kubectl scale …"),
        (&["start"], "it is `rootlet up` here"),
        (&["ps"], "it is `rootlet get pods` here"),
        (&["image", "lod"], "'load'"),
        (&["up", "--ephemreal"], "'--ephemeral'"),
        (&["status", "--output", "jsn"], "json"),
    ] {
        let wrong = rootlet(words);
        assert_eq!(wrong.code, Some(2), "{words:?}: {}", wrong.out);
        assert!(wrong.err.contains(meant) && wrong.out.is_empty(), "{words:?}: {}", wrong.err);
    }
    let help = rootlet(&["--help"]);
    assert!(help.out.contains("Exit codes: 0 done, 1 failed, 2 wrong use"), "{}", help.out);
}
