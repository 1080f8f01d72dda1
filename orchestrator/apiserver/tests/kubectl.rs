//! Real kubectl against a served instance, every version that is on the machine.

mod harness;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use harness::{DEADLINE, Listening};
use tokio::{io::AsyncWriteExt, process::Command};

const PLACES: &[&str] = &["/usr/lib/google-cloud-sdk/bin", "/usr/local/bin", "/usr/bin"];
const VERSIONS: &[&str] = &["kubectl.1.29", "kubectl.1.32", "kubectl.1.33", "kubectl"];

fn binaries(test: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for version in VERSIONS {
        let path = PLACES.iter().map(|place| Path::new(place).join(version)).find(|path| path.exists());
        found.extend(path);
    }
    if found.is_empty() {
        eprintln!("SKIPPED: {test}: no kubectl on this machine");
    }
    found
}

struct Kubectl<'a> {
    binary: &'a Path,
    home: &'a Path,
}

impl Kubectl<'_> {
    async fn run(&self, args: &str, input: &str) -> (bool, String) {
        let args: Vec<&str> = args.split_whitespace().collect();
        let mut child = Command::new(self.binary)
            .args(&args)
            .env("KUBECONFIG", self.home.join("kubeconfig"))
            .env("HOME", self.home)
            // What `edit` runs on the file it is given.
            .env("KUBE_EDITOR", "sed -i s/before/after/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).await.expect("kubectl reads");
        drop(stdin);
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output());
        let output = output.await.unwrap_or_else(|_| panic!("{args:?} ends in time")).expect("an output");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).expect("text"))
    }

    /// Runs a command that succeeds and says all of this.
    async fn says(&self, args: &str, input: &str, expect: &[&str]) -> String {
        let (success, output) = self.run(args, input).await;
        let name = self.binary.display();
        assert!(success, "{name} {args}: {output}");
        for text in expect {
            assert!(output.contains(text), "{name} {args}: no {text:?} in: {output}");
        }
        output
    }

    /// Runs a command that fails and says this.
    async fn fails(&self, args: &str, input: &str, expect: &str) {
        let (success, output) = self.run(args, input).await;
        let name = self.binary.display();
        assert!(!success && output.contains(expect), "{name} {args}: {output}");
    }
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: nginx
        image: nginx:1
        ports:
        - containerPort: 80
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - port: 80
"#;

#[tokio::test(flavor = "multi_thread")]
async fn everyday_commands() {
    for binary in binaries("everyday_commands") {
        let cluster = Listening::new().await;
        let home = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = cluster.server.admin_kubeconfig(&cluster.url()).expect("a kubeconfig");
        std::fs::write(home.path().join("kubeconfig"), kubeconfig).expect("the kubeconfig");
        let kubectl = Kubectl { binary: &binary, home: home.path() };

        kubectl.says("version", "", &["Server Version: v1."]).await;
        kubectl
            .says("api-resources", "", &["deployments", "apps/v1", "endpointslices", "discovery.k8s.io/v1"])
            .await;
        kubectl.says("cluster-info", "", &["Kubernetes control plane"]).await;
        kubectl.says("auth whoami", "", &["kubernetes-admin", "system:masters"]).await;
        kubectl.says("auth can-i create pods", "", &["yes"]).await;
        kubectl.says("get namespaces", "", &["kube-node-lease", "Active"]).await;
        kubectl.says("get service kubernetes -o wide", "", &["10.96.0.1", "443/TCP"]).await;

        kubectl.says("create serviceaccount default", "", &["created"]).await;
        kubectl.says("apply -f -", DEPLOYMENT, &["deployment.apps/web created", "service/web created"]).await;
        kubectl
            .says("apply -f -", DEPLOYMENT, &["deployment.apps/web unchanged", "service/web unchanged"])
            .await;
        let changed = DEPLOYMENT.replace("nginx:1", "nginx:2");
        kubectl.says("apply -f -", &changed, &["deployment.apps/web configured"]).await;
        kubectl.says("get deployment web -o wide", "", &["nginx:2", "app=web", "0/2"]).await;
        kubectl
            .says(
                "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}",
                "",
                &["nginx:2"],
            )
            .await;
        kubectl.says("scale deployment web --replicas=5", "", &["deployment.apps/web scaled"]).await;
        kubectl.says("get deployment web -o yaml", "", &["replicas: 5", "resourceVersion:"]).await;
        kubectl.says("set image deployment/web nginx=nginx:3", "", &["image updated"]).await;
        kubectl.says("label deployment web tier=front", "", &["labeled"]).await;
        kubectl.says("annotate deployment web note=hello", "", &["annotated"]).await;
        kubectl.says("get deployments -l tier=front --show-labels", "", &["tier=front"]).await;
        kubectl.says("get svc,deploy -A", "", &["service/kubernetes", "deployment.apps/web"]).await;

        kubectl
            .says("create configmap settings --from-literal=a=b", "", &["configmap/settings created"])
            .await;
        kubectl.says("create secret generic key --from-literal=a=b", "", &["secret/key created"]).await;
        kubectl.says("run one --image=nginx --restart=Never", "", &["pod/one created"]).await;
        kubectl.says("get pod one", "", &["Pending"]).await;
        kubectl.says("get pods --field-selector=status.phase=Pending -o name", "", &["pod/one"]).await;
        kubectl
            .says(
                "describe pod one",
                "",
                &["kube-api-access-", "node.kubernetes.io/not-ready:NoExecute op=Exists for 300s"],
            )
            .await;
        kubectl
            .says("wait pod/one --for=jsonpath={.status.phase}=Pending --timeout=10s", "", &["condition met"])
            .await;
        kubectl.says("explain deployment.spec.replicas", "", &["Number of desired pods"]).await;
        let bogus = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: b, bogus: 1}]}";
        kubectl.fails("apply -f -", bogus, "unknown field \"spec.containers[0].bogus\"").await;
        kubectl.fails("create configmap settings", "", "configmaps \"settings\" already exists").await;
        kubectl.fails("get pod nobody", "", "pods \"nobody\" not found").await;
        kubectl.fails("logs one", "", "one").await;

        kubectl.says("delete pod one", "", &["pod \"one\" deleted"]).await;
        kubectl.says("delete deployment web --cascade=orphan --wait=false", "", &["deleted"]).await;
        kubectl.says("delete configmap settings", "", &["configmap \"settings\" deleted"]).await;
        kubectl.fails("delete namespace default", "", "this namespace may not be deleted").await;
        cluster.stop().await;
    }
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: replica-1}\n";

#[tokio::test(flavor = "multi_thread")]
async fn further_commands() {
    for binary in binaries("further_commands") {
        let cluster = Listening::new().await;
        let home = tempfile::tempdir().expect("a temporary folder");
        let kubeconfig = cluster.server.admin_kubeconfig(&cluster.url()).expect("a kubeconfig");
        std::fs::write(home.path().join("kubeconfig"), kubeconfig).expect("the kubeconfig");
        let kubectl = Kubectl { binary: &binary, home: home.path() };

        kubectl.says("create namespace work", "", &["namespace/work created"]).await;
        kubectl.says("create serviceaccount default -n work", "", &["created"]).await;
        let token = kubectl.says("create token default -n work --duration=10m", "", &["ey"]).await;
        let args = format!("--token={} auth whoami", token.trim());
        // The administrator's certificate comes first, as upstream.
        kubectl.says(&args, "", &["kubernetes-admin"]).await;
        kubectl
            .says("auth whoami --as=system:serviceaccount:work:default", "", &["system:serviceaccounts:work"])
            .await;
        kubectl.says("auth can-i --list", "", &["*.*"]).await;
        let (_, answer) = kubectl.run("auth can-i create pods --as=nobody", "").await;
        assert!(answer.contains("no"), "{answer}");

        kubectl.says("create deployment web --image=nginx --replicas=3 -n work", "", &["created"]).await;
        kubectl
            .says("expose deployment web --port=80 --type=NodePort -n work", "", &["service/web exposed"])
            .await;
        kubectl.says("get service web -n work", "", &["NodePort", "80:3"]).await;
        kubectl.says("patch deployment web -n work -p {\"spec\":{\"replicas\":1}}", "", &["patched"]).await;
        kubectl.says("patch deployment web -n work --type=json -p [{\"op\":\"remove\",\"path\":\"/spec/replicas\"}]", "", &["patched"]).await;
        kubectl.says("set env deployment/web A=b -n work", "", &["env updated"]).await;
        kubectl
            .says("set resources deployment/web --limits=cpu=1,memory=64Mi -n work", "", &["updated"])
            .await;
        kubectl.says("describe deployment web -n work", "", &["64Mi", "A:"]).await;

        kubectl.says("create configmap text --from-literal=k=before", "", &["created"]).await;
        kubectl.says("edit configmap text", "", &["configmap/text edited"]).await;
        let text = kubectl.says("get configmap text -o yaml", "", &["k: after"]).await;
        kubectl.says("replace -f -", &text.replace("after", "replaced"), &["configmap/text replaced"]).await;
        kubectl.fails("replace -f -", &text, "the object has been modified").await;
        kubectl.says("apply --dry-run=server -f -", DEPLOYMENT, &["web created (server dry run)"]).await;
        kubectl.fails("get deployment web", "", "not found").await;
        let unknown = r#"{"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}}"#;
        kubectl
            .fails("apply -f -", unknown, "no matches for kind \"Thing\" in version \"example.com/v1\"")
            .await;
        let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "one"}}"#;
        kubectl.says("apply --server-side -f -", map, &["configmap/applied serverside-applied"]).await;
        let other = map.replace("one", "two");
        let arguments = "apply --server-side --field-manager=other -f -";
        kubectl.fails(arguments, &other, "conflict with \"kubectl\": .data.k").await;
        kubectl.says(&format!("{arguments} --force-conflicts"), &other, &["serverside-applied"]).await;
        kubectl
            .says("get configmap applied -o yaml --show-managed-fields", "", &["f:k: {}", "manager: other"])
            .await;

        kubectl.says("create -f -", NODE, &["node/replica-1 created"]).await;
        kubectl.says("cordon replica-1", "", &["cordoned"]).await;
        kubectl.says("get nodes", "", &["SchedulingDisabled"]).await;
        kubectl.says("taint node replica-1 a=b:NoSchedule", "", &["tainted"]).await;
        kubectl.says("describe node replica-1", "", &["a=b:NoSchedule"]).await;
        kubectl.says("get --raw /healthz", "", &["ok"]).await;
        kubectl.says("get --raw /readyz?verbose", "", &["[+]store ok"]).await;
        kubectl.says("get --raw /metrics", "", &["apiserver_request_total{"]).await;
        kubectl.says("get events -A", "", &["No resources found"]).await;
        kubectl.says("get all -n work", "", &["deployment.apps/web", "service/web"]).await;
        kubectl
            .says("delete deployment,service --all -n work --cascade=background", "", &["\"web\" deleted"])
            .await;
        kubectl.says("delete namespace work --wait=false", "", &["deleted"]).await;
        kubectl.says("get namespace work", "", &["Terminating"]).await;
        kubectl.fails("create configmap late -n work", "", "because it is being terminated").await;
        cluster.stop().await;
    }
}
