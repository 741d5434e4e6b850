//! What room a driver has for volumes of each class in each place, for the scheduler: CSIStorageCapacity.
//!
//! Source: `external-provisioner/pkg/capacity/capacity.go`.

use std::collections::BTreeMap;

use apimachinery::quantity::{Format, Quantity};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use plugin::proto::{self, Capacity, GetCapacity, Topology};
use sha2::{Digest, Sha256};

use super::parameters::Parameters;
use super::topology::{Term, View};
use super::{CAPACITY_PERIOD, Controller, Error, Served, usage};
use crate::queue::{Failure, Next};
use crate::unless_code;

const NAMESPACE: &str = "kube-system";
const DRIVER: &str = "csi.storage.k8s.io/drivername";
const KEPT_BY: &str = "csi.storage.k8s.io/managed-by";

fn name(driver: &str, class: &str, place: &Term) -> String {
    let sum = Sha256::digest(format!("{driver}\0{class}\0{place:?}"));
    let hex: String = sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("csisc-{hex}")
}

impl Controller {
    pub(super) async fn sync_capacity(&self) -> Result<Next, Failure> {
        let mut again = Next::Done;
        for about in self.drivers.store().state() {
            let driver = about.name_any();
            if !self.is_served(&driver) {
                continue;
            }
            let wanted = about.spec.storage_capacity == Some(true);
            let served = if wanted { self.serve(&driver).await.ok().flatten() } else { None };
            let served = served.filter(|served| served.can(proto::GET_CAPACITY));
            if wanted {
                again = Next::After(CAPACITY_PERIOD);
            }
            self.tell_capacity(&driver, served.as_ref()).await?;
        }
        Ok(again)
    }

    /// Brings the objects of this driver up to date; those without a class or a place go.
    async fn tell_capacity(&self, driver: &str, served: Option<&Served>) -> Result<(), Failure> {
        let api: Api<CSIStorageCapacity> = Api::namespaced(self.client.clone(), NAMESPACE);
        let labels = format!("{DRIVER}={driver},{KEPT_BY}={}", self.node);
        let known = api.list(&ListParams::default().labels(&labels)).await?;
        let mut known: BTreeMap<String, CSIStorageCapacity> =
            known.items.into_iter().map(|object| (object.name_any(), object)).collect();
        if let Some(served) = served {
            let view = View {
                driver,
                nodes: &self.nodes.store().state(),
                csi_nodes: &self.csi_nodes.store().state(),
                allowed: &[],
                selected: None,
                seed: "",
            };
            let places = if served.constrained { view.places() } else { vec![Term::new()] };
            let classes = self.classes.store().state_filter(|class| class.provisioner == driver);
            for class in &classes {
                for place in &places {
                    self.tell_room(&api, served, class, place, &mut known).await?;
                }
            }
        }
        for gone in known.keys() {
            unless_code(api.delete(gone, &DeleteParams::default()).await, 404)?;
        }
        Ok(())
    }

    /// Brings the object of one class and place up to date, and takes it from those that are to go.
    async fn tell_room(
        &self,
        api: &Api<CSIStorageCapacity>,
        served: &Served,
        class: &StorageClass,
        place: &Term,
        known: &mut BTreeMap<String, CSIStorageCapacity>,
    ) -> Result<(), Failure> {
        let old = known.remove(&name(&served.name, &class.name_any(), place));
        let found = match self.room(served, class, place).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, driver = served.name, "what room there is, is not known");
                return Ok(());
            }
        };
        let mut new = self.object(&served.name, class, place, &found);
        let parameters = PostParams::default();
        match old {
            None => drop(api.create(&parameters, &new).await?),
            Some(old)
                if old.capacity != new.capacity
                    || old.maximum_volume_size != new.maximum_volume_size =>
            {
                new.metadata.resource_version = old.metadata.resource_version;
                api.replace(&new.name_any(), &parameters, &new).await?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    async fn room(
        &self,
        driver: &Served,
        class: &StorageClass,
        place: &Term,
    ) -> Result<Capacity, Error> {
        let all = class.parameters.clone().unwrap_or_default();
        // There is no claim that secrets could be named by; they are not needed to ask.
        let parameters: BTreeMap<String, String> =
            all.into_iter().filter(|(key, _)| !key.contains("-secret-name")).collect();
        let parameters = Parameters::read(&parameters, &PersistentVolumeClaim::default(), "")
            .unwrap_or_default();
        let fs_type = parameters.fs_type.unwrap_or_default();
        let flags = class.mount_options.clone().unwrap_or_default();
        let request = GetCapacity {
            volume_capabilities: vec![usage(false, fs_type, flags, driver.mode("ReadWriteOnce"))],
            parameters: parameters.driver.into_iter().collect(),
            accessible_topology: (!place.is_empty())
                .then(|| Topology { segments: place.clone().into_iter().collect() }),
        };
        Ok(driver.plugin.call("/csi.v1.Controller/GetCapacity", request).await?)
    }

    fn object(
        &self,
        driver: &str,
        class: &StorageClass,
        place: &Term,
        found: &Capacity,
    ) -> CSIStorageCapacity {
        let quantity = |bytes: i64| Text(Quantity::new(bytes, Format::BinarySi).to_string());
        let labels = [(DRIVER, driver), (KEPT_BY, self.node.as_str())];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        CSIStorageCapacity {
            metadata: ObjectMeta {
                name: Some(name(driver, &class.name_any(), place)),
                namespace: Some(NAMESPACE.into()),
                labels: Some(labels.into()),
                ..ObjectMeta::default()
            },
            capacity: Some(quantity(found.available_capacity)),
            maximum_volume_size: found.maximum_volume_size.as_ref().map(|max| quantity(max.value)),
            node_topology: Some(LabelSelector {
                match_labels: (!place.is_empty()).then(|| place.clone()),
                ..LabelSelector::default()
            }),
            storage_class_name: class.name_any(),
        }
    }
}
