// What can be done to objects. Each is asked about before, and told of after.

const MERGE = "application/merge-patch+json";

async function act(what, work) {
	try {
		await work();
		toast(what);
	} catch (error) {
		toast(`${what.replace(/\.$/, "")}: that failed. ${error.message}`, true);
	}
}

const nameOf = (object) => `${object.kind} ${object.metadata.name}`;

function pathOf(object, kind, subresource) {
	return kind.one(object.metadata.namespace, object.metadata.name, subresource);
}

// What `kubectl drain --ignore-daemonsets --delete-emptydir-data` does, once.
async function drain(node, kind) {
	const { name } = node.metadata;
	const told = { evicted: 0, kept: 0 };
	try {
		await ask(pathOf(node, kind), { method: "PATCH", type: MERGE, body: { spec: { unschedulable: true } } });
		const pods = await askJson(`${KIND.Pod.list()}?fieldSelector=${encodeURIComponent(`spec.nodeName=${name}`)}`);
		const stays = ({ metadata, status }) => metadata.annotations?.["kubernetes.io/config.mirror"]
			|| metadata.ownerReferences?.some((owner) => owner.controller && owner.kind === "DaemonSet")
			|| metadata.deletionTimestamp || ["Succeeded", "Failed"].includes(status.phase);
		for (const { metadata } of pods.items.filter((pod) => !stays(pod))) {
			const body = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name: metadata.name, namespace: metadata.namespace } };
			try {
				await ask(KIND.Pod.one(metadata.namespace, metadata.name, "eviction"), { method: "POST", body });
				told.evicted += 1;
			} catch (error) {
				// 429: a disruption budget keeps it for now. 404: it went by itself.
				if (error.code !== 429 && error.code !== 404) throw error;
				told.kept += error.code === 429;
			}
		}
		const kept = told.kept ? `; disruption budgets keep ${told.kept}, try again later` : "";
		toast(`Node ${name} is cordoned, and ${told.evicted} pods are evicted${kept}.`, told.kept > 0);
	} catch (error) {
		toast(`Node ${name} is not drained: ${error.message}`, true);
	}
}

const ACTIONS = [
	{
		key: "r", label: "Restart",
		fits: (object) => ["Deployment", "StatefulSet", "DaemonSet"].includes(object.kind),
		async run(object, kind) {
			const text = "Its pods are exchanged one after the other, as its strategy says.";
			if (!(await confirmed({ title: `Restart ${nameOf(object)}?`, text, go: "Restart" }))) return;
			// What `kubectl rollout restart` sets.
			const annotations = { "kubectl.kubernetes.io/restartedAt": new Date().toISOString() };
			await act(`${nameOf(object)} restarts.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { template: { metadata: { annotations } } } } }));
		},
	},
	{
		key: "+", label: "Scale",
		fits: (object) => ["Deployment", "StatefulSet", "ReplicaSet", "ReplicationController"].includes(object.kind),
		async run(object, kind) {
			const input = h("input", { type: "number", min: 0, step: 1, value: object.spec.replicas ?? 1, required: true });
			const fields = [h("label", null, "Replicas", input)];
			if (!(await confirmed({ title: `Scale ${nameOf(object)}`, go: "Scale", fields }))) return;
			const replicas = Number(input.value);
			await act(`${nameOf(object)} scales to ${replicas}.`, () =>
				ask(pathOf(object, kind, "scale"), { method: "PATCH", type: MERGE, body: { spec: { replicas } } }));
		},
	},
	{
		key: "c", label: (object) => (object.spec?.unschedulable ? "Uncordon" : "Cordon"),
		fits: (object) => object.kind === "Node",
		async run(object, kind) {
			const on = !object.spec?.unschedulable;
			const text = on ? "No new pods are placed on it; those there stay." : "Pods may be placed on it again.";
			if (!(await confirmed({ title: `${on ? "Cordon" : "Uncordon"} ${nameOf(object)}?`, text, go: on ? "Cordon" : "Uncordon" }))) return;
			await act(`${nameOf(object)} is ${on ? "cordoned" : "schedulable"}.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { unschedulable: on || null } } }));
		},
	},
	{
		key: "D", label: "Drain",
		fits: (object) => object.kind === "Node",
		async run(object, kind) {
			const text = "No new pods are placed on it, and those there are evicted, as disruption budgets allow. Daemon sets' and static pods stay.";
			if (!(await confirmed({ title: `Drain ${nameOf(object)}?`, text, go: "Drain", danger: true }))) return;
			await drain(object, kind);
		},
	},
	{
		key: "c", label: (object) => (object.spec?.suspend ? "Resume" : "Suspend"),
		fits: (object) => object.kind === "CronJob" || object.kind === "Job",
		async run(object, kind) {
			const on = !object.spec?.suspend;
			if (!(await confirmed({ title: `${on ? "Suspend" : "Resume"} ${nameOf(object)}?`, go: on ? "Suspend" : "Resume" }))) return;
			await act(`${nameOf(object)} is ${on ? "suspended" : "resumed"}.`, () =>
				ask(pathOf(object, kind), { method: "PATCH", type: MERGE, body: { spec: { suspend: on } } }));
		},
	},
	{
		key: "r", label: "Run now",
		fits: (object) => object.kind === "CronJob",
		async run(object) {
			const { name, namespace, uid } = object.metadata;
			const job = {
				apiVersion: "batch/v1", kind: "Job", spec: object.spec.jobTemplate.spec,
				metadata: {
					generateName: `${name.slice(0, 50)}-`, labels: object.spec.jobTemplate.metadata?.labels,
					annotations: { ...object.spec.jobTemplate.metadata?.annotations, "cronjob.kubernetes.io/instantiate": "manual" },
					ownerReferences: [{ apiVersion: "batch/v1", kind: "CronJob", name, uid, controller: true }],
				},
			};
			if (!(await confirmed({ title: `Run ${nameOf(object)} now?`, text: "A Job is made from its template.", go: "Run" }))) return;
			await act(`A Job of ${nameOf(object)} starts.`, () => ask(KIND.Job.list(namespace), { method: "POST", body: job }));
		},
	},
	{
		key: "x", label: "Delete", danger: true,
		fits: () => true,
		async run(object, kind) {
			const where = object.metadata.namespace ? ` in ${object.metadata.namespace}` : "";
			const owner = object.metadata.ownerReferences?.find((reference) => reference.controller);
			const text = owner ? `It belongs to ${owner.kind} ${owner.name}, which may make another.`
				: object.kind === "Namespace" ? "Everything in it goes as well." : "What belongs to it goes as well.";
			const force = h("input", { type: "checkbox" });
			const fields = object.kind === "Pod" ? [h("label.check", null, force, "now: with one second to end")] : [];
			if (!(await confirmed({ title: `Delete ${nameOf(object)}${where}?`, text, go: "Delete", danger: true, fields }))) return;
			const options = { apiVersion: "v1", kind: "DeleteOptions", propagationPolicy: "Background", preconditions: { uid: object.metadata.uid } };
			if (force.checked) options.gracePeriodSeconds = 1;
			await act(`${nameOf(object)} is deleted.`, () => ask(pathOf(object, kind), { method: "DELETE", body: options }));
		},
	},
];

const actionsFor = (object) => ACTIONS.filter((action) => action.fits(object));
const labelOf = (action, object) => (typeof action.label === "function" ? action.label(object) : action.label);
