//! The CRI image service over the image store.

use std::collections::HashMap;

use k8s_cri::v1;
use k8s_cri::v1::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use crate::backend::{Credentials, Image};
use crate::error::Error;
use crate::runtime::Runtime;
use crate::serve::{Items, in_parts};
use crate::state::now_ns;

/// Of the verbose answer to ImageStatus: how far a pull of the image is.
const PULL: &str = "pull";

type Reply<T> = Result<Response<T>, Status>;

fn image(image: &Image) -> v1::Image {
    let user =
        image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let uid = user.parse::<i64>().ok();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size_bytes,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: Some(v1::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}

fn name(spec: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() {
        Err(Status::invalid_argument("image reference is empty"))
    } else {
        Ok(name)
    }
}

/// Credentials in the forms CRI knows: fields, or Docker's base64 of `user:password`.
fn credentials(auth: v1::AuthConfig) -> Result<Credentials, Error> {
    use base64::Engine;
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty() && !auth.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim());
        let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (user, secret) = pair.ok_or_else(|| {
            Error::InvalidArgument("invalid auth config: not base64 of user:password".into())
        })?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    Ok(Credentials {
        username,
        password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    })
}

impl Runtime {
    fn selected_images(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let name = filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match name.filter(|name| !name.is_empty()) {
            Some(name) => self.images().get(&name).into_iter().collect(),
            None => self.images().list(),
        };
        images.iter().map(image).collect()
    }
}

#[tonic::async_trait]
impl ImageService for Runtime {
    type StreamImagesStream = Items<v1::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Reply<v1::ListImagesResponse> {
        Ok(Response::new(v1::ListImagesResponse {
            images: self.selected_images(request.into_inner().filter),
        }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Reply<Self::StreamImagesStream> {
        let images = self.selected_images(request.into_inner().filter);
        Ok(in_parts(images, |images| v1::StreamImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Reply<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let found = self.images().get(&name);
        let mut info = HashMap::new();
        if let Some((received, total)) = self.images().pulling(&name).filter(|_| request.verbose) {
            let state = serde_json::json!({"receivedBytes": received, "totalBytes": total});
            info.insert(PULL.to_owned(), state.to_string());
        }
        if let Some(found) = found.as_ref().filter(|_| request.verbose) {
            info.insert(
                "info".to_owned(),
                serde_json::json!({"imageSpec": found.config.as_ref()}).to_string(),
            );
        }
        // An image that is not there is answered by nothing, not by an error.
        Ok(Response::new(v1::ImageStatusResponse { image: found.as_ref().map(image), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Reply<v1::PullImageResponse> {
        let request = request.into_inner();
        let handler = request.image.as_ref().map_or("", |spec| spec.runtime_handler.as_str());
        if !handler.is_empty() && handler != crate::runtime::HANDLER {
            return Err(crate::sandbox::unknown_handler(handler).into());
        }
        let credentials = request.auth.map(credentials).transpose()?;
        let image = self.images().pull(&name(request.image)?, credentials).await?;
        Ok(Response::new(v1::PullImageResponse { image_ref: image.id }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Reply<v1::RemoveImageResponse> {
        let name = name(request.into_inner().image)?;
        // By whatever name it is called, all of its names go; what is not there need not be removed.
        if let Some(image) = self.images().get(&name) {
            match self.images().remove(&image.id).await {
                Ok(()) => {}
                Err(Error::Image { code: tonic::Code::NotFound, .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Reply<v1::ImageFsInfoResponse> {
        let usage = self.images().usage();
        let usage = v1::FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: self.images().root().to_string_lossy().into_owned(),
            }),
            used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_two_forms() {
        let decoded =
            credentials(v1::AuthConfig { auth: "dTpwOnc=".into(), ..Default::default() }).unwrap();
        assert_eq!((decoded.username.as_str(), decoded.password.as_str()), ("u", "p:w"));
        assert!(credentials(v1::AuthConfig { auth: "!".into(), ..Default::default() }).is_err());
    }
}
