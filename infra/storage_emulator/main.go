// Program storage_emulator serves gs:// on this machine, for tests: a fake of Google's store with what Beam needs of it.
//
//	storage_emulator -port 4443 -bucket mofi -credentials key.json
//
// The fake answers a batch call only where each part has a Content-ID, which Google's client for Python leaves out.
// It also has no tokens; without credentials, that client would look for some for half a minute in each process.
// A bucket named by -read-only refuses to be written.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

func main() {
	port := flag.Int("port", 4443, "port of the local interface")
	bucket := flag.String("bucket", "mofi", "bucket to start with")
	readOnly := flag.String("read-only", "", "a further bucket, which refuses to be written")
	credentials := flag.String("credentials", "", "file for the key of a service account that this program accepts")
	flag.Parse()
	url := fmt.Sprintf("http://127.0.0.1:%d", *port)
	if *credentials != "" {
		if err := writeCredentials(*credentials, url+"/token"); err != nil {
			log.Fatal(err)
		}
	}
	server, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, ExternalURL: url})
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{*bucket, *readOnly} {
		if name != "" {
			server.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: name})
		}
	}
	log.Fatal(http.ListenAndServe(strings.TrimPrefix(url, "http://"), handler(server.HTTPHandler(), *readOnly)))
}

func handler(store http.Handler, readOnly string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token": "token", "token_type": "Bearer", "expires_in": 3600}`)
		case readOnly != "" && r.Method != http.MethodGet && strings.Contains(r.URL.Path, "/b/"+readOnly+"/"):
			http.Error(w, `{"error": {"code": 403, "message": "the bucket may not be written"}}`, http.StatusForbidden)
		case strings.HasPrefix(r.URL.Path, "/batch/"):
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(withContentIDs(body)))
			store.ServeHTTP(w, r)
		default:
			store.ServeHTTP(w, r)
		}
	})
}

// withContentIDs numbers the parts of a batch call.
func withContentIDs(body []byte) []byte {
	const header = "Content-Type: application/http"
	parts := strings.Split(string(body), header)
	numbered := parts[0]
	for number, part := range parts[1:] {
		numbered += fmt.Sprintf("Content-ID: <%d>\r\n%s", number, header) + part
	}
	return []byte(numbered)
}

// writeCredentials makes the key of a service account whose tokens come from tokenURL.
func writeCredentials(path, tokenURL string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	content, err := json.Marshal(map[string]string{
		"type":           "service_account",
		"project_id":     "emulated",
		"private_key_id": "0",
		"private_key":    string(private),
		"client_email":   "test@emulated",
		"client_id":      "0",
		"token_uri":      tokenURL,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o600)
}
