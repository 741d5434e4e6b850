//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction, ClusterTrustBundleAttest: who may
//! approve, sign and attest for which signer, and what no certificate may say.
//!
//! Source: `plugin/pkg/admission/certificates`.

use apimachinery::{Status, meta};
use base64::Engine as _;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::authz::Authorizer;
use crate::gate::Operation;
use crate::zero::Zero;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";
const TRUST_BUNDLES: &str = "clustertrustbundles";
const MASTERS: &str = "system:masters";

/// Refuses what is not for the user to decide.
pub fn admit(
    authorizer: &Authorizer,
    ctx: &RequestContext,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if ctx.is(GROUP, TRUST_BUNDLES) {
        return attest(authorizer, ctx, object, old);
    }
    if !ctx.is(GROUP, PLURAL) {
        return Ok(());
    }
    let refuse = |why: String| Err(Status::forbidden(GROUP, PLURAL, meta::name(object), &why));
    match (ctx.subresource.as_str(), operation, old) {
        ("", Operation::Create, _) => match subject_mistake(object) {
            Some(why) => refuse(why),
            None => Ok(()),
        },
        ("approval", Operation::Update, Some(old)) => {
            let signer = old["spec"]["signerName"].text();
            if may(authorizer, ctx, "approve", signer) {
                return Ok(());
            }
            refuse(format!("user not permitted to approve requests with signerName {signer:?}"))
        }
        ("status", Operation::Update, Some(old)) => {
            let (new, before) = (&object["status"], &old["status"]);
            if new["certificate"] == before["certificate"]
                && new["conditions"] == before["conditions"]
            {
                return Ok(());
            }
            let signer = old["spec"]["signerName"].text();
            if may(authorizer, ctx, "sign", signer) {
                return Ok(());
            }
            refuse(format!("user not permitted to sign requests with signerName {signer:?}"))
        }
        _ => Ok(()),
    }
}

/// A bundle with a signer's name says whom to believe: that is for those who may speak for the signer.
fn attest(
    authorizer: &Authorizer,
    ctx: &RequestContext,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let signer = object["spec"]["signerName"].text();
    if signer.is_empty()
        || old.is_some_and(|old| old["spec"] == object["spec"] && only_collected(object, old))
        || may(authorizer, ctx, "attest", signer)
    {
        return Ok(());
    }
    let why = format!("user not permitted to attest for signerName {signer:?}");
    Err(Status::forbidden(GROUP, TRUST_BUNDLES, meta::name(object), &why))
}

/// Whether nothing changes but what garbage collection needs.
fn only_collected(object: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut metadata = object["metadata"].clone();
        if let Some(fields) = metadata.as_object_mut() {
            for field in ["finalizers", "ownerReferences", "managedFields"] {
                fields.remove(field);
            }
        }
        metadata
    };
    rest(object) == rest(old)
}

/// Whether the user may do so for this signer, or for all of its domain.
fn may(authorizer: &Authorizer, ctx: &RequestContext, verb: &'static str, signer: &str) -> bool {
    let asked = |name: &str| {
        authorizer
            .authorize(&RequestContext {
                user: ctx.user.clone(),
                verb,
                group: GROUP.into(),
                version: "*".into(),
                plural: "signers".into(),
                name: name.into(),
                ..RequestContext::default()
            })
            .allowed()
    };
    let domain = signer.split('/').next().unwrap_or_default();
    asked(signer) || asked(&format!("{domain}/*"))
}

/// A request for a client certificate of the administrators' group is never signed.
fn subject_mistake(object: &Value) -> Option<String> {
    use x509_parser::prelude::FromDer;
    let spec = &object["spec"];
    if spec["signerName"] != "kubernetes.io/kube-apiserver-client" {
        return None;
    }
    let invalid = |why: &dyn std::fmt::Display| Some(format!("failed to parse CSR: {why}"));
    let pem = match base64::engine::general_purpose::STANDARD.decode(spec["request"].text()) {
        Ok(pem) => pem,
        Err(error) => return invalid(&error),
    };
    let block = match x509_parser::pem::parse_x509_pem(&pem) {
        Ok((_, block)) => block,
        Err(error) => return invalid(&error),
    };
    let request =
        x509_parser::certification_request::X509CertificationRequest::from_der(&block.contents);
    let request = match request {
        Ok((_, request)) => request,
        Err(error) => return invalid(&error),
    };
    let subject = &request.certification_request_info.subject;
    let masters =
        subject.iter_organization().any(|o| o.as_str().is_ok_and(|group| group == MASTERS));
    masters.then(|| {
        format!(
            "use of kubernetes.io/kube-apiserver-client signer with {MASTERS} group is not allowed"
        )
    })
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;
    use crate::attributes::UserInfo;
    use crate::tests::Fixture;

    fn request(group: &str) -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        STANDARD.encode(params.serialize_request(&key).expect("a request").pem().expect("PEM"))
    }

    #[tokio::test]
    async fn whom_to_believe_is_for_the_signer_to_say() {
        let f = Fixture::offering(&["certificates.k8s.io/v1beta1"]).await;
        let path = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate");
        let mut bundle = json!({"metadata": {"name": "e.com:s:a"},
            "spec": {"signerName": "e.com/s", "trustBundle": pem.pem()}});
        let role = json!({"metadata": {"name": "author"}, "rules": [{"apiGroups": [GROUP],
            "resources": [TRUST_BUNDLES], "verbs": ["create", "update", "patch"]}]});
        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        assert_eq!(f.post(roles, &role).await.code, 201);
        let binding = json!({"metadata": {"name": "author"}, "subjects": [{"kind": "User", "name": "eve",
            "apiGroup": "rbac.authorization.k8s.io"}], "roleRef": {"kind": "ClusterRole",
            "name": "author", "apiGroup": "rbac.authorization.k8s.io"}});
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        assert_eq!(f.post(bindings, &binding).await.code, 201);
        let admin = f.seen_by(UserInfo::new("admin", &[MASTERS]));
        assert_eq!(admin.post(path, &bundle).await.code, 201);
        let eve = admin.seen_by(UserInfo::new("eve", &[]));
        bundle["metadata"]["name"] = "e.com:s:b".into();
        assert_eq!(
            eve.post(path, &bundle).await.body["message"],
            "clustertrustbundles.certificates.k8s.io \"e.com:s:b\" is forbidden: user not permitted to attest for signerName \"e.com/s\""
        );
        let own = format!("{path}/e.com:s:a");
        let finalizer = json!({"metadata": {"finalizers": ["e.com/f"]}});
        assert_eq!(eve.patch(&own, "merge", &finalizer).await.code, 200);
        let label = json!({"metadata": {"labels": {"a": "b"}}});
        assert_eq!(eve.patch(&own, "merge", &label).await.code, 403);
        bundle["metadata"]["name"] = "plain".into();
        bundle["spec"] = json!({"trustBundle": bundle["spec"]["trustBundle"]});
        assert_eq!(eve.post(path, &bundle).await.code, 201);
    }

    #[tokio::test]
    async fn approving_needs_the_right_to_do_it_for_the_signer() {
        let f = Fixture::new().await;
        let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let csr = |name: &str, group: &str| {
            json!({"metadata": {"name": name}, "spec": {"request": request(group),
                "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}})
        };
        let refused = f.post(path, &csr("a", MASTERS)).await;
        let message = refused.body["message"].text();
        assert!(message.ends_with("with system:masters group is not allowed"), "{message}");
        assert_eq!(f.post(path, &csr("b", "dev")).await.code, 201);
        let role = json!({"metadata": {"name": "approver"}, "rules": [{"apiGroups": [GROUP],
            "resources": ["certificatesigningrequests/approval"], "verbs": ["update", "patch"]}]});
        let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
        assert_eq!(f.post(roles, &role).await.code, 201);
        let binding = json!({"metadata": {"name": "approver"}, "subjects": [{"kind": "User", "name": "eve",
            "apiGroup": "rbac.authorization.k8s.io"}], "roleRef": {"kind": "ClusterRole",
            "name": "approver", "apiGroup": "rbac.authorization.k8s.io"}});
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        assert_eq!(f.post(bindings, &binding).await.code, 201);
        let approval = json!({"status": {"conditions": [{"type": "Approved", "status": "True",
            "reason": "x", "message": "y"}]}});
        let own = format!("{path}/b/approval");
        let eve = f.seen_by(UserInfo::new("eve", &[]));
        let refused = eve.patch(&own, "merge", &approval).await;
        assert_eq!(
            refused.body["message"],
            "certificatesigningrequests.certificates.k8s.io \"b\" is forbidden: user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
        );
        let admin = eve.seen_by(UserInfo::new("admin", &[MASTERS]));
        assert_eq!(admin.patch(&own, "merge", &approval).await.code, 200);
    }
}
