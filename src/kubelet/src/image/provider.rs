//! Registry credentials from plugins: programs that are told an image and answer with who may pull it.
//!
//! Source of behaviour: `pkg/credentialprovider/plugin`, `k8s.io/kubelet/config/v1` (CredentialProviderConfig),
//! `k8s.io/kubelet/pkg/apis/credentialprovider/v1`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::access::{Origin, Owner};
use crate::context::Context;
use crate::file::Error;
use crate::{credentials, pod};

/// How long a plugin may take.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Life of the tokens that plugins are given.
const TOKEN_SECONDS: i64 = 600;
const CONFIG_GROUP: &str = "kubelet.config.k8s.io/";
const PLUGIN_GROUP: &str = "credentialprovider.kubelet.k8s.io/";
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Written>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<Attributes>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

/// That a plugin is given a token of the pod's service account.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Attributes {
    service_account_token_audience: String,
    cache_type: String,
    require_service_account: Option<bool>,
    #[serde(default)]
    required_service_account_annotation_keys: Vec<String>,
    #[serde(default)]
    optional_service_account_annotation_keys: Vec<String>,
}

#[derive(Debug)]
struct Provider {
    name: String,
    images: Vec<String>,
    cache: Duration,
    version: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    token: Option<Attributes>,
}

/// A plugin's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

#[derive(Clone, Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

type Auths = BTreeMap<String, Auth>;

struct Kept {
    auths: Auths,
    until: Instant,
}

/// The service account a plugin is told of.
struct Account {
    owner: Owner,
    token: String,
    annotations: BTreeMap<String, String>,
}

/// The plugins of a configuration.
#[derive(Default)]
pub struct Providers {
    folder: PathBuf,
    all: Vec<Provider>,
    /// By plugin, account and what the plugin says its answers go by.
    kept: Mutex<HashMap<Question, Kept>>,
    /// Plugins that are being asked, by plugin, account and image: pods that start together ask once, and one that
    /// hangs keeps nobody waiting who asks for something else.
    asking: Mutex<HashMap<Question, Arc<OnceCell<Result<Auths, String>>>>>,
}

type Question = (String, String, String);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Providers {
    /// Reads the file, or the folder of files, `config`, and looks that every program is in `folder`.
    pub fn read(config: &Path, folder: &Path) -> Result<Self, Error> {
        let cannot = |path: &Path, source| Error::Read { path: path.into(), source };
        let mut files = vec![config.to_path_buf()];
        if config.is_dir() {
            let entries = std::fs::read_dir(config).map_err(|error| cannot(config, error))?;
            files = entries.flatten().map(|entry| entry.path()).collect();
            let wanted = ["yaml", "yml", "json"];
            files.retain(|p| p.extension().is_some_and(|e| wanted.iter().any(|w| e == *w)));
            files.sort();
        }
        let mut all: Vec<Provider> = Vec::new();
        for path in files {
            let text = std::fs::read_to_string(&path).map_err(|error| cannot(&path, error))?;
            let invalid = |reason| Error::Invalid { path: path.clone(), reason };
            for provider in parse(&text).map_err(invalid)? {
                if all.iter().any(|known| known.name == provider.name) {
                    return Err(invalid(format!("provider {:?} is there twice", provider.name)));
                }
                if !folder.join(&provider.name).is_file() {
                    let program = folder.join(&provider.name);
                    return Err(invalid(format!(
                        "plugin binary executable {} did not exist",
                        program.display()
                    )));
                }
                all.push(provider);
            }
        }
        Ok(Self { folder: folder.into(), all, ..Self::default() })
    }

    /// What the plugins have for `image`, the most specific first.
    pub async fn credentials(
        &self,
        context: &Context,
        of: &Pod,
        image: &str,
    ) -> Vec<(AuthConfig, Origin)> {
        let image = credentials::whole_name(image);
        let mut found = Vec::new();
        for provider in &self.all {
            if !provider.images.iter().any(|pattern| credentials::fits(pattern, &image)) {
                continue;
            }
            match self.ask(context, of, provider, &image).await {
                Ok((auths, origin)) => {
                    let fitting =
                        auths.into_iter().filter(|(pattern, _)| credentials::fits(pattern, &image));
                    found.extend(fitting.map(|(pattern, auth)| {
                        let auth = AuthConfig {
                            username: auth.username,
                            password: auth.password,
                            server_address: pattern.clone(),
                            ..AuthConfig::default()
                        };
                        (pattern.len(), auth, origin.clone())
                    }));
                }
                Err(error) => tracing::warn!(
                    provider = provider.name,
                    image,
                    %error,
                    "failed getting credential from external registry credential provider"
                ),
            }
        }
        found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        found.into_iter().map(|(_, auth, origin)| (auth, origin)).collect()
    }

    async fn ask(
        &self,
        context: &Context,
        of: &Pod,
        provider: &Provider,
        image: &str,
    ) -> Result<(Auths, Origin), String> {
        let account = match &provider.token {
            None => None,
            Some(attributes) => account(context, of, attributes).await?,
        };
        let origin =
            account.as_ref().map_or(Origin::Node, |account| Origin::Account(account.owner.clone()));
        if provider.token.is_some() && account.is_none() {
            // Without an account there is nothing to ask with; the plugin is passed over.
            return Ok((Auths::new(), origin));
        }
        let account_key = account.as_ref().map_or_else(String::new, |account| {
            let by_token =
                provider.token.as_ref().is_some_and(|attributes| attributes.cache_type == "Token");
            let token = if by_token { account.token.as_str() } else { "" };
            format!("{} {token} {:?}", account.owner.uid, account.annotations)
        });
        let question = (provider.name.clone(), account_key, image.to_owned());
        if let Some(auths) = self.known(&question) {
            return Ok((auths, origin));
        }
        let flight = locked(&self.asking).entry(question.clone()).or_default().clone();
        let answer = flight.get_or_init(|| self.learn(provider, &question, account.as_ref())).await;
        let mut asking = locked(&self.asking);
        if asking.get(&question).is_some_and(|known| Arc::ptr_eq(known, &flight)) {
            asking.remove(&question);
        }
        answer.clone().map(|auths| (auths, origin))
    }

    /// What a plugin has said that is still good.
    fn known(&self, (provider, account, image): &Question) -> Option<Auths> {
        let now = Instant::now();
        let mut kept = locked(&self.kept);
        kept.retain(|_, kept| now < kept.until);
        ["", registry(image), image].into_iter().find_map(|place| {
            let key = (provider.clone(), account.clone(), place.to_owned());
            kept.get(&key).map(|kept| kept.auths.clone())
        })
    }

    async fn learn(
        &self,
        provider: &Provider,
        (name, account_key, image): &Question,
        account: Option<&Account>,
    ) -> Result<Auths, String> {
        let answer = run(&self.folder, provider, image, account).await?;
        let place = match answer.cache_key_type.as_str() {
            "Global" => "",
            "Registry" => registry(image),
            "Image" => image,
            other => {
                return Err(format!(
                    "credential provider plugin did not return a valid cacheKeyType: {other:?}"
                ));
            }
        };
        let lifetime = match answer.cache_duration.as_deref() {
            None => provider.cache,
            Some(text) => apimachinery::time::duration(text)
                .ok_or_else(|| format!("{text:?} is no duration"))?,
        };
        if !lifetime.is_zero() {
            let key = (name.clone(), account_key.clone(), place.to_owned());
            let kept = Kept { auths: answer.auth.clone(), until: Instant::now() + lifetime };
            locked(&self.kept).insert(key, kept);
        }
        Ok(answer.auth)
    }
}

fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

fn parse(text: &str) -> Result<Vec<Provider>, String> {
    let value = apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
    let file: File = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let version = file.api_version.strip_prefix(CONFIG_GROUP).unwrap_or_default();
    if file.kind != "CredentialProviderConfig" || !VERSIONS.contains(&version) {
        return Err(format!("{} of {} is not known", file.kind, file.api_version));
    }
    if file.providers.is_empty() {
        return Err("at least 1 item in plugins is required".into());
    }
    file.providers.into_iter().map(check).collect()
}

fn check(written: Written) -> Result<Provider, String> {
    let name = written.name;
    let wrong = |what: &str| Err(format!("provider {name:?}: {what}"));
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', ' ']) {
        return wrong("its name is to be that of a file");
    }
    if written.match_images.is_empty() {
        return wrong("matchImages: at least 1 item is required");
    }
    let Some(cache) = written.default_cache_duration.as_deref() else {
        return wrong("defaultCacheDuration is required");
    };
    let Some(cache) = apimachinery::time::duration(cache) else {
        return wrong("defaultCacheDuration must be a duration that is not negative");
    };
    let version = written.api_version.strip_prefix(PLUGIN_GROUP).unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return wrong("apiVersion is not supported");
    }
    if let Some(attributes) = &written.token_attributes {
        if version != "v1" {
            return wrong("tokenAttributes are only supported for v1");
        }
        if attributes.service_account_token_audience.is_empty() {
            return wrong("tokenAttributes.serviceAccountTokenAudience is required");
        }
        let Some(required) = attributes.require_service_account else {
            return wrong("tokenAttributes.requireServiceAccount is required");
        };
        if !required && !attributes.required_service_account_annotation_keys.is_empty() {
            return wrong("requireServiceAccount is to be true where annotations are required");
        }
        if !matches!(attributes.cache_type.as_str(), "Token" | "ServiceAccount") {
            return wrong("tokenAttributes.cacheType is to be Token or ServiceAccount");
        }
    }
    Ok(Provider {
        images: written.match_images,
        cache,
        version: version.to_owned(),
        args: written.args,
        env: written.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
        token: written.token_attributes,
        name,
    })
}

/// The pod's account as the plugin wants it told; `None` where it has none and needs none.
async fn account(
    context: &Context,
    of: &Pod,
    attributes: &Attributes,
) -> Result<Option<Account>, String> {
    let required = attributes.require_service_account.unwrap_or(true);
    let name = of.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return if required {
            Err("the pod has no service account, which the plugin requires".into())
        } else {
            Ok(None)
        };
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), pod::namespace(of));
    let object = api.get(name).await.map_err(|error| crate::api::text(&error))?;
    let all = object.metadata.annotations.unwrap_or_default();
    let mut annotations = BTreeMap::new();
    for key in &attributes.required_service_account_annotation_keys {
        let value = all.get(key);
        let value =
            value.ok_or_else(|| format!("service account {name:?} lacks annotation {key:?}"))?;
        annotations.insert(key.clone(), value.clone());
    }
    for key in &attributes.optional_service_account_annotation_keys {
        if let Some(value) = all.get(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let audience = Some(attributes.service_account_token_audience.as_str());
    let token = context.tokens.get(of, audience, TOKEN_SECONDS, context.clock.now()).await;
    let token = token.map_err(|error| crate::api::text(&error))?.token;
    let owner = Owner {
        uid: object.metadata.uid.unwrap_or_default(),
        namespace: pod::namespace(of).into(),
        name: name.into(),
        hash: String::new(),
    };
    Ok(Some(Account { owner, token, annotations }))
}

async fn run(
    folder: &Path,
    provider: &Provider,
    image: &str,
    account: Option<&Account>,
) -> Result<Answer, String> {
    let mut request = json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": format!("{PLUGIN_GROUP}{}", provider.version),
        "image": image,
    });
    if let Some(account) = account {
        request["serviceAccountToken"] = account.token.as_str().into();
        request["serviceAccountAnnotations"] = json!(account.annotations);
    }
    let program = folder.join(&provider.name);
    let mut child = tokio::process::Command::new(&program)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("run {}: {error}", program.display()))?;
    let stdin = child.stdin.take();
    let exchange = async {
        if let Some(mut stdin) = stdin {
            // One that does not read what it is told has its answer looked at all the same.
            let _ = stdin.write_all(request.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| format!("{} did not answer within a minute", program.display()))?
        .map_err(|error| format!("run {}: {error}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}: {}", program.display(), output.status, said.trim()));
    }
    let unreadable = |error: serde_json::Error| format!("its answer is not readable: {error}");
    let value: Value = serde_json::from_slice(&output.stdout).map_err(unreadable)?;
    let answer: Answer = serde_json::from_value(value).map_err(unreadable)?;
    if answer.kind != "CredentialProviderResponse"
        || answer.api_version.strip_prefix(PLUGIN_GROUP) != Some(provider.version.as_str())
    {
        return Err(format!("it answers with {} of {}", answer.kind, answer.api_version));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::context::Machine;
    use crate::fake::node::Node;

    fn config(more: &str) -> String {
        format!(
            "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
             - name: plugin\n  matchImages: ['*.example']\n  defaultCacheDuration: 1h\n  \
             apiVersion: credentialprovider.kubelet.k8s.io/v1\n{more}"
        )
    }

    #[test]
    fn what_is_wrong_is_told() {
        let token = "  tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token";
        for (text, expected) in [
            (config(""), ""),
            (config("  args: [a]\n  env: [{name: A, value: b}]\n"), ""),
            (config(&format!("{token}, requireServiceAccount: true}}\n")), ""),
            (config(&format!("{token}}}\n")), "requireServiceAccount is required"),
            (config("  colour: red\n"), "unknown field `colour`"),
            (config("").replace("plugin", "../plugin"), "that of a file"),
            (config("").replace("['*.example']", "[]"), "at least 1 item is required"),
            (config("").replace("1h", "-1h"), "not negative"),
            (config("").replace("k8s.io/v1\n", "k8s.io/v2\n"), "is not known"),
        ] {
            let problem = parse(&text).map(drop).err().unwrap_or_default();
            assert!(problem.contains(expected), "{text}: {problem}");
            assert_eq!(problem.is_empty(), expected.is_empty(), "{text}: {problem}");
        }
    }

    #[tokio::test]
    async fn a_plugin_is_asked_once_for_a_registry() {
        let folder = tempfile::tempdir().unwrap();
        let (program, file) = (folder.path().join("plugin"), folder.path().join("config.yaml"));
        let script = format!(
            "#!/bin/sh\ncat >>{0}/asked\necho >>{0}/asked\nprintf '{{\"kind\": \"CredentialProviderResponse\", \
             \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \"cacheKeyType\": \"Registry\", \
             \"auth\": {{\"*.example\": {{\"username\": \"me\", \"password\": \"%s\"}}, \
             \"other.test\": {{\"username\": \"you\"}}}}}}' $WORD\n",
            folder.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::write(&file, config("  env: [{name: WORD, value: secret}]\n")).unwrap();
        assert!(Providers::read(&file, Path::new("/nowhere")).is_err(), "there is no program");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let providers = Providers::read(&file, folder.path()).unwrap();
        let node = Node::new();
        let context = node.context(Machine::default());
        let of = Pod::default();
        for image in ["reg.example/a:1", "reg.example/b", "busybox"] {
            let found = providers.credentials(&context, &of, image).await;
            let told: Vec<_> =
                found.iter().map(|(a, _)| format!("{}:{}", a.username, a.password)).collect();
            let expected: &[&str] = if image == "busybox" { &[] } else { &["me:secret"] };
            assert_eq!(told, expected, "{image}");
        }
        let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
        let request: Value = serde_json::from_str(asked.trim()).expect("it was asked once");
        assert_eq!(request["image"], "reg.example/a");
    }

    #[tokio::test]
    async fn a_plugin_that_hangs_keeps_only_its_own_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let (program, file) = (folder.path().join("plugin"), folder.path().join("config.yaml"));
        let go = folder.path().join("go");
        assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
        let script = format!(
            "#!/bin/sh\nread asked\necho \"$asked\" >>{0}/asked\n\
             case $asked in *slow*) read word <{0}/go;; esac\n\
             printf '{{\"kind\": \"CredentialProviderResponse\", \"cacheKeyType\": \"Image\", \
             \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", \
             \"auth\": {{\"*.example\": {{\"username\": \"me\"}}}}}}'\n",
            folder.path().display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&file, config("")).unwrap();
        let providers = Arc::new(Providers::read(&file, folder.path()).unwrap());
        let node = Node::new();
        let context = node.context(Machine::default());
        let slow = || {
            let (providers, context) = (providers.clone(), context.clone());
            tokio::spawn(async move {
                providers.credentials(&context, &Pod::default(), "reg.example/slow").await.len()
            })
        };
        let waiting = [slow(), slow()];
        let asked = || std::fs::read_to_string(folder.path().join("asked")).unwrap_or_default();
        while !asked().contains("slow") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let quick = providers.credentials(&context, &Pod::default(), "reg.example/quick").await;
        assert_eq!(quick.len(), 1);
        assert!(waiting.iter().all(|task| !task.is_finished()));
        let released = tokio::task::spawn_blocking(move || std::fs::write(go, "go\n"));
        released.await.unwrap().unwrap();
        for task in waiting {
            assert_eq!(task.await.unwrap(), 1);
        }
        assert_eq!(asked().matches("slow").count(), 1, "pods that start together ask once");
    }
}
